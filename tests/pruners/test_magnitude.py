from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruneaug.errors import InputError, NetworkError, PluginError, SpecError
from pruneaug.network.layers import Network, apply_masks, find_layers, get_weight
from pruneaug.pruners import PRUNERS
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.pruners.protocol import Pruned
from pruneaug.sparsity.masks import check_mask, mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.operations import operation_sparsity
from pruneaug.sparsity.patterns import DENSE, Block, LayerChoice


def model_and_network() -> tuple[nn.Sequential, Network]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 10, 1, groups=10), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(10, 7)
    )
    return model, find_layers(model, (torch.zeros(1, 3, 6, 6),))


def prune(assignment: Mapping[str, LayerChoice], **options: object) -> Pruned:
    model, network = model_and_network()
    return PRUNERS.create("magnitude", options).prune(model, network, assignment, None)


@settings(max_examples=30, deadline=None)
@given(st.builds(Block, st.integers(1, 12), st.integers(1, 12)), st.floats(0, 1))
def test_each_layer_gets_its_own_sparsity_in_whole_blocks_of_its_matrix(block: Block, sparsity: float) -> None:
    model, _ = model_and_network()
    masks = prune({"0": LayerChoice(block, sparsity), "4": LayerChoice(Block(1, 1), 0.5)}).masks
    assert list(masks) == ["0", "4"]
    assert masks["0"].shape == get_weight(model, "0").shape
    matrix = weight_matrix(masks["0"])
    assert check_mask(matrix, block)
    assert abs(mask_sparsity(matrix) - sparsity) <= block.rows * block.cols / matrix.numel() + 1e-9
    assert mask_sparsity(masks["4"]) == 0.5


@pytest.mark.parametrize("power", [1, 2])
def test_the_blocks_of_largest_weights_stay(power: int) -> None:
    model, _ = model_and_network()
    mask = prune({"0": LayerChoice(Block(5, 3), 0.5)}, power=power).masks["0"]
    weights = weight_matrix(get_weight(model, "0")).detach().abs() ** power  # [10, 27]: 2 x 9 blocks
    sums = {(r, c): float(weights[5 * r : 5 * r + 5, 3 * c : 3 * c + 3].sum()) for r in range(2) for c in range(9)}
    best = set(sorted(sums, key=lambda at: -sums[at])[:9])
    assert {at for at in sums if weight_matrix(mask)[5 * at[0], 3 * at[1]]} == best


def test_the_power_decides_between_one_large_weight_and_many_small_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[3.0, 0.0, 2.0, 2.0]])
    network = find_layers(model, (torch.ones(1, 4),))
    choice = {"0": LayerChoice(Block(1, 2), 0.5)}
    assert Magnitude(power=1).prune(model, network, choice, None).masks["0"].tolist() == [[False, False, True, True]]
    assert Magnitude(power=2).prune(model, network, choice, None).masks["0"].tolist() == [[True, True, False, False]]


def test_dense_and_unnamed_layers_get_no_mask() -> None:
    assert prune({"0": DENSE}).masks == {}
    assert prune({}).masks == {}
    assert prune({}, scope="global").masks == {}


def test_pruning_leaves_the_weights_to_the_caller() -> None:
    model, network = model_and_network()
    before = get_weight(model, "0").detach().clone()
    pruned = Magnitude().prune(model, network, {"0": LayerChoice(Block(2, 2), 0.9)}, None)
    assert torch.equal(get_weight(model, "0"), before)
    assert pruned.revise is None
    apply_masks(model, pruned.masks)
    assert torch.equal(get_weight(model, "0") != 0, pruned.masks["0"])


@pytest.mark.parametrize("sparsity", [0.3, 0.7, 0.9])
def test_a_global_threshold_meets_the_operation_sparsity_asked_of_all_layers(sparsity: float) -> None:
    model, network = model_and_network()
    assignment = {"0": LayerChoice(Block(2, 1), sparsity), "4": LayerChoice(Block(1, 1), sparsity)}
    masks = Magnitude(scope="global").prune(model, network, assignment, None).masks
    assert operation_sparsity(network, masks) == pytest.approx(sparsity, abs=2 / 270)
    assert check_mask(weight_matrix(masks["0"]), Block(2, 1))


def test_a_global_threshold_takes_more_from_the_layer_of_smaller_weights() -> None:
    model, network = model_and_network()
    get_weight(model, "4").data.mul_(0.01)
    assignment = dict.fromkeys(("0", "4"), LayerChoice(Block(1, 1), 0.5))
    masks = Magnitude(scope="global").prune(model, network, assignment, None).masks
    assert masks["4"].sum() == 1  # its best weight: no layer is emptied
    assert mask_sparsity(masks["0"]) < 0.5


def test_a_name_that_is_no_prunable_layer_is_refused() -> None:
    with pytest.raises(NetworkError, match="'1' is none: it is a depthwise convolution"):
        prune({"1": LayerChoice(Block(1, 1), 0.5)})
    with pytest.raises(NetworkError, match="'44' is none; did you mean '4'"):
        prune({"44": LayerChoice(Block(1, 1), 0.5)})


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_weights_that_are_not_numbers_are_refused_by_layer(scope: str) -> None:
    model, network = model_and_network()
    get_weight(model, "4").data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layer '4'.*NaN"):
        PRUNERS.create("magnitude", {"scope": scope}).prune(model, network, {"4": LayerChoice(Block(1, 1), 0.5)}, None)


@pytest.mark.parametrize("options", [{"scope": "network"}, {"power": 3}])
def test_an_option_out_of_range_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="must be"):
        PRUNERS.create("magnitude", options)


def test_an_unknown_option_or_pruner_is_refused() -> None:
    with pytest.raises(PluginError, match="power"):
        PRUNERS.create("magnitude", {"powr": 2})
    with pytest.raises(PluginError, match="magnitude"):
        PRUNERS.load("magnitud")
