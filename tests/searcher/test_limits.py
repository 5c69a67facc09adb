from scored_space import make_space

from pruneaug.searcher.limits import settle
from pruneaug.sparsity.patterns import DENSE, Block, LayerChoice

ONE, FOUR, EIGHT = (LayerChoice(Block(rows, 1), 0.7) for rows in (1, 4, 8))


def test_an_assignment_within_all_limits_stays_and_missing_layers_are_dense():
    assert settle(make_space(), {"a": ONE, "c": EIGHT}) == {
        "a": ONE, "b": DENSE, "c": EIGHT, "d": DENSE, "e": DENSE, "f": DENSE
    }  # fmt: skip


def test_the_patterns_that_most_multiplications_use_stay():
    settled = settle(make_space(max_patterns=1), {"c": EIGHT, "e": EIGHT, "a": ONE, "f": FOUR})
    assert {choice.pattern for choice in settled.values()} == {None, Block(8, 1)}
    assert settled["a"] == settled["f"] == EIGHT
    assert settled["b"] == DENSE


def test_a_layer_takes_the_remaining_pattern_nearest_in_size():
    settled = settle(make_space(max_patterns=2), {"c": EIGHT, "e": EIGHT, "d": ONE, "a": ONE, "f": FOUR})
    assert settled["f"] == EIGHT


def test_a_layer_that_may_have_none_of_the_remaining_patterns_is_dense():
    space = make_space(max_patterns=1, layers=[{"match": "f", "patterns": ["element"]}])
    assert settle(space, {"c": EIGHT, "f": ONE})["f"] == DENSE


def test_a_fixed_layer_is_what_it_must_be_and_its_pattern_stays():
    space = make_space(max_patterns=1, layers=[{"match": "f", "fix": {"pattern": "element", "sparsity": 0.7}}])
    settled = settle(space, {"c": EIGHT, "e": EIGHT})
    assert settled["f"] == settled["c"] == settled["e"] == ONE


def test_layers_that_share_take_the_choice_of_the_first_of_them():
    settled = settle(make_space(share=True), {"c": EIGHT, "d": ONE, "a": ONE})
    assert settled["c"] == settled["d"] == settled["e"] == EIGHT
    assert settled["a"] == ONE


def test_layers_of_a_named_group_take_the_choice_of_the_first_of_them_whatever_their_op():
    settled = settle(make_space(layers=[{"match": "[af]", "group": "ends"}]), {"a": EIGHT, "f": ONE, "c": EIGHT})
    assert settled["a"] == settled["f"] == settled["c"] == EIGHT
    assert settled["d"] == DENSE
