"""N:M in pruners that do more than choose by a layer's scores."""

import pytest
import torch
from test_sparsegpt import error, one_by_one, problem
from torch import nn

from pruneaug.network.layers import find_layers, get_weight
from pruneaug.pruners.gradual import Gradual
from pruneaug.pruners.lamp import Lamp
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.pruners.reconstruction import inverse_factor, refit, sweep
from pruneaug.sparsity.masks import block_mask, check_mask
from pruneaug.sparsity.patterns import NM, TWO_OF_FOUR, Block, LayerChoice


@pytest.mark.parametrize("columns", [4, 6, 128])
@pytest.mark.parametrize("cols", [40, 41, 43])
def test_sparsegpt_chooses_each_group_from_weights_that_make_up_for_all_before(cols: int, columns: int) -> None:
    matrix, hessian = problem(6, cols)
    updated, mask = sweep(matrix, inverse_factor(hessian), TWO_OF_FOUR, 0.5, columns)
    assert torch.allclose(updated, one_by_one(matrix, hessian, mask))
    assert check_mask(mask, TWO_OF_FOUR)
    assert int(mask.sum()) == 6 * (cols // 4 * 2 + TWO_OF_FOUR.kept(cols % 4))
    for start in range(0, cols, 4):  # what the weights are when all columns before them are done
        before = mask.clone()
        before[:, start:] = True
        now = one_by_one(matrix, hessian, before)[:, start : start + 4]
        left = [torch.linalg.inv(hessian[0, j:, j:])[0, 0] for j in range(start, min(start + 4, cols))]
        assert torch.equal(mask[:, start : start + 4], block_mask(now.square() / torch.stack(left), TWO_OF_FOUR, 0.5))
    best = refit(matrix, hessian, mask, TWO_OF_FOUR)
    assert torch.equal(best != 0, mask)
    assert error(matrix, best, hessian) <= error(matrix, updated, hessian) * (1 + 1e-9)


@pytest.mark.parametrize("pruner", [Magnitude(scope="global"), Lamp()])
def test_one_threshold_is_over_the_layers_of_blocks(pruner: Magnitude | Lamp) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 48)).eval()
    network = find_layers(model, (torch.zeros(1, 16),))
    blocks = {"0": LayerChoice(Block(2, 1), 0.8), "2": LayerChoice(Block(2, 1), 0.6)}
    alone = pruner.prune(model, network, blocks, None).masks
    both = pruner.prune(model, network, {**blocks, "1": LayerChoice(TWO_OF_FOUR, 0.5)}, None).masks
    assert all(torch.equal(both[name], mask) for name, mask in alone.items())
    assert torch.equal(both["1"], block_mask(get_weight(model, "1").detach().square(), TWO_OF_FOUR, 0.5))


def test_gradual_pruning_ends_in_n_of_m_and_removes_more_and_more() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32)).eval()
    network, choice = find_layers(model, (torch.zeros(1, 16),)), LayerChoice(NM(1, 4), 0.75)
    pruned = Gradual(end=1.0, steps=4).prune(model, network, {"0": choice}, None)
    assert pruned.revise is not None
    masks = [pruned.revise(model, progress)["0"].clone() for progress in (0.0, 0.25, 0.5, 1.0)]
    kept = [int(mask.sum()) for mask in masks]
    assert kept[0] == 512
    assert kept == sorted(set(kept), reverse=True)
    assert not check_mask(masks[1], NM(1, 4))
    assert check_mask(masks[-1], NM(1, 4))
    assert kept[-1] == 128
