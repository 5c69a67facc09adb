"""LAMP against its definition in loops, random against chance."""

import pytest
import torch
from pruner_cases import blend
from torch import nn

from pruneaug.network.layers import Network, find_layers, get_weight
from pruneaug.pruners.lamp import Lamp, lamp
from pruneaug.pruners.random import Random
from pruneaug.sparsity.masks import check_mask, mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.operations import operation_sparsity
from pruneaug.sparsity.patterns import Block, LayerChoice


def two_layers() -> tuple[nn.Sequential, Network]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 11, bias=False), nn.Linear(11, 7, bias=False))
    return model, find_layers(model, (torch.zeros(1, 13),))


def test_lamp_divides_by_the_sum_of_all_that_is_not_smaller() -> None:
    model, network = blend()
    found = Lamp().scores(model, network, None)
    for name, score in found.items():
        squares = [float(w) ** 2 for w in get_weight(model, name).detach().flatten()]
        expected = [square / sum(other for other in squares if other >= square) for square in squares]
        assert score.flatten().tolist() == pytest.approx(expected, rel=1e-5)
        assert float(score.max()) == 1.0


def test_equal_values_and_zeros_have_lamp_scores_too() -> None:
    assert lamp(torch.tensor([[4.0, 4.0], [1.0, 4.0]]).double()).tolist() == [[1.0, 1 / 2], [1 / 13, 1 / 3]]
    assert lamp(torch.zeros(3).double()).tolist() == [0.0, 0.0, 0.0]


def test_lamp_removes_the_blocks_of_least_score_over_both_layers() -> None:
    model, network = two_layers()
    block = Block(4, 2)  # neither 11, 13 nor 7 is a multiple
    assignment = dict.fromkeys(("0", "1"), LayerChoice(block, 0.6))
    masks = Lamp().prune(model, network, assignment, None).masks
    ranking: list[tuple[float, str, int, int]] = []
    for name in masks:
        weight = get_weight(model, name).detach().double()
        rows, cols = range(0, weight.shape[0], 4), range(0, weight.shape[1], 2)
        norms = {(r, c): float(weight[r : r + 4, c : c + 2].square().sum()) for r in rows for c in cols}
        for place, norm in norms.items():
            ranking.append((norm / sum(other for other in norms.values() if other >= norm), name, *place))
    kept = [entry for entry in sorted(ranking, reverse=True) if masks[entry[1]][entry[2], entry[3]]]
    assert kept == sorted(ranking, reverse=True)[: len(kept)]
    assert operation_sparsity(network, masks) == pytest.approx(0.6, abs=8 / 220)
    assert all(check_mask(mask, block) for mask in masks.values())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_random_pruning_takes_every_block_as_often_narrow_ones_too(scope: str) -> None:
    model, network = two_layers()
    assignment = dict.fromkeys(("0", "1"), LayerChoice(Block(4, 4), 0.5))
    kept = torch.zeros(11, 13)
    for seed in range(400):
        kept += Random(scope, seed).prune(model, network, assignment, None).masks["0"]
    frequency = kept[::4, ::4] / 400  # 3 x 4 blocks, the last of rows and columns narrower
    assert float(frequency.min()) > 0.35
    assert float(frequency.max()) < 0.7


def test_random_masks_follow_from_the_seed_and_the_layer_alone() -> None:
    model, network = two_layers()
    choice = LayerChoice(Block(1, 1), 0.5)
    both = Random(seed=3).prune(model, network, {"0": choice, "1": choice}, None).masks
    alone = Random(seed=3).prune(model, network, {"1": choice}, None).masks
    assert torch.equal(both["1"], alone["1"])
    assert not torch.equal(Random(seed=4).prune(model, network, {"1": choice}, None).masks["1"], alone["1"])
    assert mask_sparsity(alone["1"]) == pytest.approx(0.5, abs=1 / 77)
    assert check_mask(weight_matrix(alone["1"]), Block(1, 1))
