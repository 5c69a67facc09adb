import json
import math

import pytest
import torch
from torch import nn

from pruneaug.errors import PluginError, RunError, TaskError
from pruneaug.network.layers import find_layers, get_weight
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.searcher.saliency import lose, removed_score, saliency_from_json, saliency_to_json, weigh_space
from pruneaug.searcher.space import build_space
from pruneaug.sparsity.masks import block_mask
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import Block
from pruneaug.spec.models import SpaceSpec
from pruneaug.testing.platform import analytic_table

PATTERNS = ["block:1x1", "block:4x1", "block:3x5"]


@pytest.fixture(scope="module")
def parts():
    """(model, network, space) of odd sizes: blocks do not divide them."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 10, 1), nn.Flatten(), nn.Linear(360, 9)).eval()
    network = find_layers(conv, (torch.zeros(1, 3, 8, 8),))
    spec = SpaceSpec(patterns=PATTERNS, sparsities=[0.3, 0.5, 0.9, 1.0], steps=3)
    table = analytic_table([layer.op for layer in network.layers], PATTERNS, spec.sparsities)
    return conv, network, build_space(network, spec, table, 5.0)


def scores_of(model, network):
    generator = torch.Generator().manual_seed(1)
    return {
        layer.name: torch.rand(get_weight(model, layer.name).shape, generator=generator) for layer in network.layers
    }


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (16, 16), (10, 33)])
@pytest.mark.parametrize("block", [Block(1, 1), Block(4, 1), Block(3, 5), Block(16, 16)])
def test_what_is_lost_is_what_the_mask_removes(shape, block):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    scores[:, ::3] = scores[0, 0]  # ties
    sparsities = [0.0, 0.25, 0.5, 0.8, 0.99, 1.0]
    expected = [float(scores.double()[~block_mask(scores, block, each)].sum()) for each in sparsities]
    assert removed_score(scores, block, sparsities) == pytest.approx(expected, rel=1e-6)


def test_losses_are_logarithms_of_what_the_layer_keeps_and_dense_loses_nothing(parts):
    model, network, space = parts
    scores = scores_of(model, network)
    for layer in lose(space, scores).layers:
        matrix = weight_matrix(scores[layer.name]).double()
        for choice, lost in zip(layer.choices, layer.lost, strict=True):
            removed = 0.0
            if choice.pattern is not None:
                removed = float(matrix[~block_mask(matrix.float(), choice.pattern, choice.sparsity)].sum())
            if choice.sparsity < 1:
                assert lost == pytest.approx(-math.log(1 - removed / float(matrix.sum())), rel=1e-5)
            else:
                assert 13 < lost < 14


def test_losses_that_compare_are_fractions_of_the_networks_score(parts):
    model, network, space = parts
    scores = scores_of(model, network)
    totals = {name: float(score.sum()) for name, score in scores.items()}
    by_layer, by_network = lose(space, scores).layers, lose(space, scores, "network").layers
    for one, other in zip(by_layer, by_network, strict=True):
        share = totals[one.name] / sum(totals.values())
        assert other.lost == pytest.approx([(1 - math.exp(-lost)) * share for lost in one.lost], rel=1e-5)


def test_by_layer_the_unit_of_a_layers_scores_does_not_matter(parts):
    model, network, space = parts
    scores = scores_of(model, network)
    scaled = {name: score * 10.0**number for number, (name, score) in enumerate(scores.items())}
    for one, other in zip(lose(space, scores).layers, lose(space, scaled).layers, strict=True):
        assert other.lost == pytest.approx(one.lost, rel=1e-5)


def test_losses_rise_with_sparsity(parts):
    model, network, space = parts
    for layer in weigh_space(space, model, network, Magnitude(), None).layers:
        found = dict(zip(layer.choices, layer.lost, strict=True))
        for pattern in layer.patterns:
            losses = [lost for choice, lost in found.items() if choice.pattern == pattern]
            assert losses == sorted(losses)


def test_a_pruner_without_scores_counts_as_magnitude(parts):
    class Unscored:
        def prune(self, model, network, assignment, data):
            raise AssertionError

    model, network, space = parts
    one = weigh_space(space, model, network, Unscored(), None)
    other = weigh_space(space, model, network, Magnitude(), None)
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.lost == pytest.approx(b.lost, rel=1e-5)


def test_a_pruner_may_say_that_its_scores_compare(parts):
    class Comparing(Magnitude):
        scores_compare = True

    model, network, space = parts
    auto = weigh_space(space, model, network, Comparing(), None)
    assert auto == weigh_space(space, model, network, Magnitude(), None, "network")
    assert weigh_space(space, model, network, Comparing(), None, "layer") != auto


def test_a_layer_without_any_score_has_nothing_to_lose(parts):
    model, network, space = parts
    zeros = {name: torch.zeros_like(score) for name, score in scores_of(model, network).items()}
    assert all(set(layer.lost) == {0.0} for layer in lose(space, zeros).layers)


def test_saliency_comes_back_from_json_as_it_was(parts):
    model, network, space = parts
    weighed = weigh_space(space, model, network, Magnitude(), None)
    assert saliency_from_json(space, json.loads(json.dumps(saliency_to_json(weighed)))) == weighed


@pytest.mark.parametrize("value", [{}, {"0": {}}, {"0": {"dense": "x"}}])
def test_saliency_of_another_space_is_refused(parts, value):
    with pytest.raises(RunError, match="remove it to have it made again"):
        saliency_from_json(parts[2], value)


def test_scores_that_are_none_are_refused(parts):
    model, network, space = parts
    scores = scores_of(model, network)
    first = network.layers[0].name
    with pytest.raises(PluginError, match=f"'{first}' is missing"):
        lose(space, {name: score for name, score in scores.items() if name != first})
    for wrong in (scores[first][1:], -scores[first], scores[first] * torch.nan):
        with pytest.raises(PluginError, match=r"must be finite, at least 0 and in the weight's layout"):
            lose(space, {**scores, first: wrong})


class Broken(Magnitude):
    """A scorer with a bug, or one that says what is wrong."""

    def __init__(self, error):
        self.error = error

    def scores(self, model, network, data):
        raise self.error


def test_a_pruner_that_fails_to_score_is_named(parts):
    model, network, space = parts
    with pytest.raises(PluginError, match="the pruner 'Broken' failed to score the network: KeyError: 'a bug'; mend"):
        weigh_space(space, model, network, Broken(KeyError("a bug")), None)
    with pytest.raises(TaskError, match="no data"):
        weigh_space(space, model, network, Broken(TaskError("no data")), None)
