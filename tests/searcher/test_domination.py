import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaug.network.layers import Layer
from pruneaug.network.ops import LinearOp
from pruneaug.searcher.domination import front, hull, undominated, worthwhile
from pruneaug.searcher.space import LayerSpace, SearchSpace
from pruneaug.sparsity.patterns import DENSE, Block, LayerChoice


def make_layer(times, losses, noises=None, sparsities=None):
    sparsities = sparsities or np.linspace(0.5, 0.9, len(times) - 1)
    choices = (DENSE, *(LayerChoice(Block(1, 1), float(each)) for each in sparsities))
    lost = None if losses is None else tuple(map(float, losses))
    noises = (0.0,) * len(times) if noises is None else noises
    return LayerSpace(Layer("a", LinearOp(1, 8, 8)), choices, tuple(map(float, times)), tuple(noises), lost)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_without_noise_the_front_is_what_no_other_choice_beats(seed, count):
    rng = np.random.default_rng(seed)
    times = np.concatenate([[9.0], rng.integers(0, 9, count - 1)])
    losses = np.concatenate([[0.0], rng.integers(1, 9, count - 1)])
    kept = front(make_layer(times, losses))
    points = set(zip(times, losses))
    expected = {p for p in points if not any(a <= p[0] and b <= p[1] and (a, b) != p for a, b in points)}
    assert {(times[at], losses[at]) for at in kept} == expected
    assert len(kept) == len(expected)
    assert [times[at] for at in kept] == sorted((times[at] for at in kept), reverse=True)


def test_of_choices_nearer_than_the_noise_the_one_that_loses_less_stays():
    layer = make_layer([10.0, 5.0, 4.8, 3.0], [0, 1, 2, 3], noises=[0, 0.5, 0.5, 0.5])
    assert front(layer) == (0, 1, 3)


def test_of_equal_times_and_losses_the_lower_sparsity_stays():
    layer = make_layer([10.0, 5.0, 5.0], [0, 1, 1], sparsities=[0.9, 0.6])
    assert front(layer) == (0, 2)


def test_without_scores_sparsity_counts_as_the_loss():
    assert front(make_layer([10.0, 4.0, 6.0, 3.0], None)) == (0, 1, 3)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.floats(0.001, 100.0))
def test_the_hull_holds_a_best_choice_for_every_price_of_latency(seed, count, price):
    rng = np.random.default_rng(seed)
    times, losses = np.concatenate([[1.0], rng.random(count - 1)]), np.concatenate([[0.0], rng.random(count - 1)])
    layer = make_layer(times, losses)
    best = min(losses + price * times)
    assert min(losses[at] + price * times[at] for at in hull(layer)) == pytest.approx(best)
    gains = [
        (times[a] - times[b]) / (losses[b] - losses[a]) for a, b in zip(hull(layer)[:-1], hull(layer)[1:], strict=True)
    ]
    assert gains == sorted(gains, reverse=True)


def test_a_space_keeps_what_its_layers_keep():
    layer = make_layer([10.0, 11.0, 5.0, 4.0], [0, 1, 2, 3], noises=[0, 0, 0, 6.0])
    space = SearchSpace((layer,), 7.0)
    assert [str(each) for each in undominated(space).layers[0].choices] == ["dense", "block:1x1@0.7"]
    slim = worthwhile(space).layers[0]
    assert slim.choices == (DENSE, layer.choices[2])
    assert (slim.latencies_us, slim.noises_us, slim.lost) == ((10.0, 5.0), (0.0, 0.0), (0.0, 2.0))
    assert worthwhile(space).rest_us == 7.0
