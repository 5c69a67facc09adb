import pytest
from scored_space import NETWORK, TABLE

from pruneaug.errors import LatencyTableError, SpecError
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import LinearOp
from pruneaug.searcher.rules import dense_ops, measured_choices
from pruneaug.searcher.space import build_space, keep_faster
from pruneaug.sparsity.patterns import DENSE, Block, LayerChoice
from pruneaug.spec.load import parse_job
from pruneaug.spec.models import SpaceSpec


def space_of(*rules, **options):
    spec = SpaceSpec(patterns=["block:1x1", "block:8x1"], sparsities=[0.5, 0.9], steps=1, layers=rules, **options)
    return build_space(NETWORK, spec, TABLE)


def choices(space):
    return {layer.name: [str(choice) for choice in layer.choices] for layer in space.layers}


def test_between_the_sparsities_of_the_grid_there_are_steps():
    spec = SpaceSpec(patterns=["block:8x1"], sparsities=[0.5, 0.7, 0.9], steps=2)
    assert choices(build_space(NETWORK, spec, TABLE))["a"] == [
        "dense", "block:8x1@0.5", "block:8x1@0.6", "block:8x1@0.7", "block:8x1@0.8", "block:8x1@0.9"
    ]  # fmt: skip


def test_times_and_noises_are_those_of_the_table_for_all_calls():
    for layer, part in zip(NETWORK.layers, space_of().layers, strict=True):
        times = [layer.calls * TABLE.latency_us(layer.op, choice) for choice in part.choices]
        noises = [layer.calls * TABLE.noise_us(layer.op, choice) for choice in part.choices]
        assert part.latencies_us == pytest.approx(times)
        assert part.noises_us == pytest.approx(noises)


def test_a_rule_may_be_for_a_kind_of_operation():
    found = choices(space_of({"op": "conv2d-1x1", "dense": True}, {"op": "linear", "patterns": ["block:8x1"]}))
    assert found["b"] == ["dense"]
    assert found["c"] == found["f"] == ["dense", "block:8x1@0.5", "block:8x1@0.9"]
    assert len(found["a"]) == 5
    assert {name for name, each in choices(space_of({"op": "conv2d", "dense": True})).items() if len(each) == 1} == {
        "a",
        "b",
    }


def test_a_rule_needs_both_the_name_and_the_kind():
    found = choices(space_of({"match": "[abc]", "op": "linear", "dense": True}))
    assert [name for name, each in found.items() if each == ["dense"]] == ["c"]
    with pytest.raises(SpecError, match="'a' of op 'linear' matches none"):
        space_of({"match": "a", "op": "linear", "dense": True})


def test_patterns_may_be_excluded():
    assert choices(space_of({"match": "c", "exclude": ["element"]}))["c"] == [
        "dense", "block:8x1@0.5", "block:8x1@0.9"
    ]  # fmt: skip


def test_sparsities_may_be_bounded_and_bounds_within_the_grid_are_choices():
    bounded = choices(space_of({"match": "c", "min_sparsity": 0.6, "max_sparsity": 0.8, "patterns": ["block:8x1"]}))
    assert bounded["c"] == ["dense", "block:8x1@0.6", "block:8x1@0.8"]
    high = choices(space_of({"match": "c", "min_sparsity": 0.2, "max_sparsity": 0.6, "patterns": ["block:8x1"]}))
    assert high["c"] == ["dense", "block:8x1@0.5", "block:8x1@0.6"]


def test_bounds_that_leave_nothing_are_an_error():
    with pytest.raises(SpecError, match=r"'c' has the bounds \[0.95, None\] and the grid 0.5, 0.9"):
        space_of({"match": "c", "min_sparsity": 0.95})


def test_a_fixed_layer_has_no_choice_not_even_dense():
    space = space_of({"match": "c", "fix": {"pattern": "block:8x1", "sparsity": 0.7}})
    part = space.layers[2]
    assert [str(choice) for choice in part.choices] == ["block:8x1@0.7"]
    assert part.is_fixed
    assert part.nearest(None, 0.0) == part.nearest(Block(1, 1), 0.5) == part.choices[0]
    assert space.dense_us > sum(layer.latencies_us[0] for layer in space.layers) - 1e-9


def test_a_fixed_layer_is_kept_even_if_it_is_no_faster_than_dense():
    fixed = LayerChoice(Block(1, 1), 0.5)
    space = space_of({"match": "c", "fix": {"pattern": "element", "sparsity": 0.5}})
    assert TABLE.latency_us(NETWORK.layers[2].op, fixed) > TABLE.latency_us(NETWORK.layers[2].op, DENSE)
    assert keep_faster({"c": fixed}, NETWORK, TABLE) == {}
    assert keep_faster({}, NETWORK, TABLE, space) == {"c": fixed}


GROUP = [{"match": "a", "group": "pair", "max_sparsity": 0.7}, {"match": "f", "group": "pair", "min_sparsity": 0.5}]


def test_layers_of_a_named_group_have_the_choices_that_all_of_them_may_have():
    space = space_of(*GROUP)
    assert choices(space)["a"] == choices(space)["f"] == ["dense", "block:1x1@0.5", "block:8x1@0.5"]
    free = space_of()
    for layer, same in zip(space.layers, free.layers, strict=True):
        times = dict(zip(same.choices, zip(same.latencies_us, same.noises_us, strict=True), strict=True))
        assert list(zip(layer.latencies_us, layer.noises_us, strict=True)) == [times[each] for each in layer.choices]
    assert [[layer.name for layer in group] for group in space.sharing()] == [["a", "f"]]
    assert [[layer.name for layer in group] for group in space.groups()] == [["a", "f"], ["b"], ["c", "d", "e"]]
    shared = space_of(*GROUP, share=True)
    assert shared.sharing() == shared.groups()
    assert free.sharing() == ()


def test_a_group_without_a_common_choice_is_an_error():
    rules = [
        {"match": "[ac]", "group": "g", "patterns": ["element"]},
        {"match": "f", "group": "g", "exclude": ["element"]},
    ]
    with pytest.raises(SpecError, match=r"'g' have none: 'a', 'c', 'f'; give them patterns that fit"):
        space_of(*rules)


def test_layers_that_share_are_kept_together_where_together_they_are_faster():
    space, choice = space_of({"match": "[af]", "group": "pair"}), LayerChoice(Block(8, 1), 0.5)
    gains = {
        layer.name: TABLE.latency_us(layer.op, DENSE) - TABLE.latency_us(layer.op, choice) for layer in NETWORK.layers
    }
    slow = SlowTable("f", 0.5 * gains["a"])
    assert keep_faster({"a": choice, "f": choice}, NETWORK, slow) == {"a": choice}
    assert keep_faster({"a": choice, "f": choice}, NETWORK, slow, space) == {"a": choice, "f": choice}
    slower = SlowTable("f", 2 * gains["a"])
    assert keep_faster({"a": choice, "f": choice}, NETWORK, slower, space) == {}


class SlowTable:
    """In which one layer takes so much more than dense, whatever it is pruned to."""

    def __init__(self, name, more_us):
        (self.op,) = (layer.op for layer in NETWORK.layers if layer.name == name)
        self.more_us = more_us

    def latency_us(self, op, choice):
        if op == self.op and not choice.is_dense:
            return TABLE.latency_us(op, DENSE) + self.more_us
        return TABLE.latency_us(op, choice)

    def noise_us(self, op, choice):
        return 0.0


def test_what_is_fixed_is_profiled_too():
    spec = SpaceSpec(
        patterns=["block:8x1"],
        sparsities=[0.5],
        layers=[{"match": "c", "fix": {"pattern": "block:4x1", "sparsity": 0.8}}],
    )
    assert measured_choices(NETWORK, spec) == (["block:8x1", "block:4x1"], [0.5, 0.8])


def test_an_op_is_profiled_dense_only_if_no_layer_of_it_may_be_sparse():
    one, other = LinearOp(3, 64, 64), LinearOp(3, 64, 128)
    network = Network((Layer("a", one), Layer("b", one), Layer("c", other)))
    rules = [{"match": "a", "dense": True}]
    assert dense_ops(network, SpaceSpec(layers=rules)) == frozenset()
    assert dense_ops(network, SpaceSpec(layers=[*rules, {"match": "b", "dense": True}])) == {one}


def test_a_fixed_choice_must_fit_and_be_measured():
    with pytest.raises(SpecError, match=r"'f' has the weight matrix \[40, 256\] and `fix.pattern` is block:64x1"):
        space_of({"match": "f", "fix": {"pattern": "block:64x1", "sparsity": 0.7}})
    with pytest.raises(LatencyTableError, match=r"no time of block:16x1@0.7 for layer 'c'; run `pruneaug profile`"):
        space_of({"match": "c", "fix": {"pattern": "block:16x1", "sparsity": 0.7}})


def test_fixed_layers_need_room_under_max_patterns():
    rules = [
        {"match": "c", "fix": {"pattern": "block:8x1", "sparsity": 0.7}},
        {"match": "d", "fix": {"pattern": "block:4x1", "sparsity": 0.7}},
    ]
    assert space_of(*rules, max_patterns=2).max_patterns == 2
    with pytest.raises(SpecError, match=r"max_patterns .* it is 1 and they are block:4x1, block:8x1; raise it"):
        space_of(*rules, max_patterns=1)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"dense": True, "patterns": ["element"]}, "a rule with `dense` leaves no choice, so leave out patterns"),
        ({"fix": {"pattern": "element", "sparsity": 0.5}, "dense": True}, "leave out fix"),
        ({"fix": {"pattern": "element", "sparsity": 0.5}, "min_sparsity": 0.1}, "leave out min_sparsity"),
        ({"min_sparsity": 0.9, "max_sparsity": 0.5}, "min_sparsity must not exceed max_sparsity, but got 0.9 and 0.5"),
        ({"fix": {"pattern": "dense", "sparsity": 0.0}}, "always a choice"),
        ({"dense": True, "group": "g"}, "leave out group"),
        ({"group": ""}, "at least 1 character"),
        ({"op": "lstm"}, "'linear', 'conv2d' or 'conv2d-1x1'"),
    ],
)
def test_a_rule_that_contradicts_itself_is_an_error(rule, words):
    with pytest.raises(SpecError, match=words):
        parse_job({"task": {"name": "digits"}, "space": {"layers": [{"match": "a", **rule}]}})
