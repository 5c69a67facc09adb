import math
from dataclasses import replace

import pytest

from pruneaug.errors import LatencyTableError, SpecError
from pruneaug.network.layers import KeptDense, Layer, Network
from pruneaug.network.ops import LinearOp
from pruneaug.searcher import decoding
from pruneaug.searcher.space import assigned_sparsity, build_space, keep_faster
from pruneaug.sparsity.patterns import DENSE, Block, LayerChoice
from pruneaug.spec.models import SpaceSpec
from pruneaug.testing.platform import analytic_table

WIDE, NARROW = LinearOp(1024, 64, 64), LinearOp(1024, 64, 4)
NETWORK = Network(
    (Layer("body.0", WIDE), Layer("body.1", WIDE, calls=2), Layer("head", NARROW)),
    (KeptDense("embedding", "Embedding layers are not prunable"),),
)
TABLE = analytic_table([WIDE, NARROW], ["block:1x1", "block:8x1"], [0.5, 0.7, 0.9])


def spec(**options):
    return SpaceSpec(**{"patterns": ["block:1x1", "block:8x1"], "sparsities": [0.5, 0.9], "steps": 1, **options})


def choices(space):
    return {layer.name: [str(choice) for choice in layer.choices] for layer in space.layers}


def test_every_layer_may_be_dense_or_any_pattern_that_fits_its_matrix():
    assert choices(build_space(NETWORK, spec(), TABLE)) == {
        "body.0": ["dense", "block:1x1@0.5", "block:1x1@0.9", "block:8x1@0.5", "block:8x1@0.9"],
        "body.1": ["dense", "block:1x1@0.5", "block:1x1@0.9", "block:8x1@0.5", "block:8x1@0.9"],
        "head": ["dense", "block:1x1@0.5", "block:1x1@0.9"],
    }


def test_the_first_rule_that_matches_a_layer_holds():
    rules = [
        {"match": "head", "dense": True},
        {"match": "*.1", "sparsities": [0.7]},
        {"match": "body.*", "patterns": ["element"]},
    ]
    assert choices(build_space(NETWORK, spec(layers=rules), TABLE)) == {
        "body.0": ["dense", "block:1x1@0.5", "block:1x1@0.9"],
        "body.1": ["dense", "block:1x1@0.7", "block:8x1@0.7"],
        "head": ["dense"],
    }


def test_a_sparsity_between_measured_ones_is_covered_and_one_outside_is_not():
    space = build_space(NETWORK, spec(patterns=["block:1x1"], sparsities=[0.3, 0.6, 0.95]), TABLE)
    assert choices(space)["body.0"] == ["dense", "block:1x1@0.6"]


def test_a_pattern_that_was_not_measured_is_left_out():
    space = build_space(NETWORK, spec(patterns=["block:8x1", "block:4x1"]), TABLE)
    assert [str(pattern) for pattern in space.patterns] == ["block:8x1"]
    assert choices(space)["head"] == ["dense"]


def test_groups_hold_layers_of_equal_op_and_choices():
    assert [[layer.name for layer in group] for group in build_space(NETWORK, spec(), TABLE).groups()] == [
        ["body.0", "body.1"],
        ["head"],
    ]
    rules = [{"match": "body.1", "sparsities": [0.7]}, {"match": "head", "dense": True}]
    assert len(build_space(NETWORK, spec(layers=rules), TABLE).groups()) == 2


def test_size_and_best_latency_are_those_of_all_assignments_on_the_grid():
    space = build_space(NETWORK, spec(), TABLE)
    assert space.size() == 5 * 5 * 3
    fastest = [
        min(TABLE.latency_us(layer.op, choice) for choice in part.choices) * layer.calls
        for layer, part in zip(NETWORK.layers, space.layers, strict=True)
    ]
    assert decoding.least_us(replace(space, rest_us=7.0)) == pytest.approx(7.0 + sum(fastest))


def test_the_nearest_choice_keeps_the_pattern_and_moves_the_sparsity_into_its_range():
    body, _, head = build_space(NETWORK, spec(), TABLE).layers
    assert body.nearest(Block(8, 1), 0.2) == LayerChoice(Block(8, 1), 0.5)
    assert body.nearest(Block(8, 1), 0.65) == LayerChoice(Block(8, 1), 0.65)
    assert body.nearest(Block(8, 1), 0.99) == LayerChoice(Block(8, 1), 0.9)
    assert body.nearest(None, 0.6) == head.nearest(Block(8, 1), 0.6) == DENSE


def test_a_layer_that_would_not_get_faster_stays_dense():
    slow, fast = LayerChoice(Block(1, 1), 0.5), LayerChoice(Block(8, 1), 0.5)
    assert TABLE.latency_us(WIDE, slow) > TABLE.latency_us(WIDE, DENSE)
    assert keep_faster({"body.0": slow, "body.1": fast, "head": DENSE}, NETWORK, TABLE) == {"body.1": fast}


def test_assigned_sparsity_weighs_layers_by_their_weights():
    assignment = {"body.0": LayerChoice(Block(1, 1), 0.5), "head": LayerChoice(Block(1, 1), 0.9)}
    assert math.isclose(assigned_sparsity(assignment, NETWORK), (0.5 * 4096 + 0.9 * 256) / (2 * 4096 + 256))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [{"match": "tail.*"}]}, r"'tail\.\*' matches none; prunable layers are body\.0, body\.1, head"),
        ({"layers": [{"match": "emb*", "sparsities": [0.5]}]}, "stays dense: Embedding layers"),
        ({"layers": [{"match": "*", "dense": True}]}, "all of body.0, body.1, head must stay dense"),
        ({"patterns": ["block:128x1"]}, "add smaller patterns"),
    ],
)
def test_a_space_without_choices_names_the_rule(options, words):
    with pytest.raises(SpecError, match=words):
        build_space(NETWORK, spec(**options), TABLE)


def test_a_rule_may_say_that_a_layer_stays_dense_which_does_so_anyway():
    assert build_space(NETWORK, spec(layers=[{"match": "embedding", "dense": True}]), TABLE).patterns


def test_a_table_with_dense_times_only_is_an_error():
    with pytest.raises(LatencyTableError, match=r"holds only dense times .*pruneaug profile"):
        build_space(NETWORK, spec(patterns=["block:2x2"]), TABLE)


def test_a_table_without_an_op_is_an_error():
    with pytest.raises(LatencyTableError, match="pruneaug profile"):
        build_space(NETWORK, spec(), analytic_table([WIDE], ["block:1x1"], [0.5, 0.9]))
