"""Against brute force, and against a dynamic programme where there is too much to try."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaug.errors import SpecError
from pruneaug.searcher.allocation import Limit, allocate


def brute_force(values, limits, kinds=None, max_kinds=None, groups=None):
    """The least sum of values over all index tuples that keep everything; None if none does."""
    best = None
    for indices in itertools.product(*(range(len(each)) for each in values)):
        if groups and any(len({indices[layer] for layer in group}) > 1 for group in groups):
            continue
        if max_kinds is not None:
            used = {kinds[layer][at] for layer, at in enumerate(indices)} - {-1}
            if len(used) > max_kinds:
                continue
        if any(sum(w[at] for w, at in zip(limit.weights, indices)) > limit.left + 1e-9 for limit in limits):
            continue
        total = sum(v[at] for v, at in zip(values, indices))
        best = total if best is None else min(best, total)
    return best


def dynamic_programme(values, weights, most):
    """The least sum of integer values per integer weight, layer by layer."""
    least = {0: 0}
    for layer_values, layer_weights in zip(values, weights):
        following = {}
        for spent, total in least.items():
            for value, weight in zip(layer_values, layer_weights):
                if spent + weight <= most:
                    key = spent + int(weight)
                    following[key] = min(following.get(key, np.inf), total + value)
        least = following
    return min(least.values(), default=None)


def total(arrays, indices):
    return sum(float(array[at]) for array, at in zip(arrays, indices, strict=True))


def check(values, limits, **options):
    """The allocation keeps everything and is as good as the best of all."""
    best = brute_force(values, limits, **options)
    if best is None:
        with pytest.raises(SpecError):
            allocate(values, limits, **options)
        return
    indices = allocate(values, limits, **options)
    for limit in limits:
        assert limit.offset + total(limit.weights, indices) <= limit.most * (1 + 1e-8) + 1e-8
    for group in options.get("groups") or ():
        assert len({indices[layer] for layer in group}) == 1
    if options.get("max_kinds") is not None:
        kinds = options["kinds"]
        assert len({kinds[layer][at] for layer, at in enumerate(indices)} - {-1}) <= options["max_kinds"]
    assert total(values, indices) == pytest.approx(best, rel=1e-7, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5), st.integers(1, 2), st.floats(0.0, 1.1))
def test_small_cases_are_as_good_as_the_best_of_all_index_tuples(seed, layers, choices, limits, share):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, choices + 1, layers)
    # Few distinct numbers: ties and equal choices are common.
    values = [rng.integers(0, 5, count).astype(float) for count in counts]
    made = []
    for number in range(limits):
        weights = [rng.integers(0, 6, count).astype(float) for count in counts]
        most = share * sum(weight.max() for weight in weights)
        made.append(Limit(f"limit {number}", weights, float(np.floor(most)), offset=0.0))
    check(values, made)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 3), st.booleans(), st.floats(0.2, 1.0))
def test_the_number_of_kinds_and_shared_choices_are_kept_exactly(seed, layers, max_kinds, shares, share):
    rng = np.random.default_rng(seed)
    kinds = [[-1, *rng.integers(0, 4, 4)] for _ in range(layers)]
    values = [np.concatenate([[0.0], rng.random(4)]) for _ in range(layers)]
    weights = [np.concatenate([[1.0], rng.random(4)]) for _ in range(layers)]
    groups = [[0, layers - 1]] if shares and layers > 1 else None
    if groups:
        kinds[-1] = kinds[0]
    limit = Limit("latency", weights, share * layers)
    check(values, [limit], kinds=kinds, max_kinds=max_kinds, groups=groups)


@pytest.mark.parametrize("seed", range(6))
def test_medium_cases_with_whole_costs_are_as_good_as_a_dynamic_programme(seed):
    rng = np.random.default_rng(seed)
    values = [rng.integers(0, 1000, 20).astype(float) for _ in range(25)]
    weights = [rng.integers(1, 200, 20).astype(float) for _ in range(25)]
    least = sum(weight.min() for weight in weights)
    for most in (least, least + 1, 1.2 * least // 1, 2 * least, 4 * least, 200 * 25):
        indices = allocate(values, [Limit("latency", weights, most)])
        assert total(weights, indices) <= most
        assert total(values, indices) == dynamic_programme(values, weights, most)


def test_without_limits_every_layer_takes_its_least_value():
    assert allocate([np.array([3.0, 1.0, 2.0]), np.array([0.0, 5.0])], []) == (1, 0)


def test_one_layer_takes_the_best_choice_that_fits():
    values, weights = [np.array([0.0, 1.0, 2.0])], [np.array([9.0, 5.0, 1.0])]
    assert allocate(values, [Limit("latency", weights, 5.0)]) == (1,)


def test_a_loose_limit_leaves_all_layers_dense():
    values, weights = [np.array([0.0, 0.1])] * 7, [np.array([2.0, 1.0])] * 7
    assert allocate(values, [Limit("latency", weights, 14.0)]) == (0,) * 7


def test_of_equal_choices_one_that_weighs_least_is_taken():
    values, weights = [np.array([1.0, 1.0, 1.0])] * 3, [np.array([3.0, 1.0, 2.0])] * 3
    assert allocate(values, [Limit("latency", weights, 100.0)]) == (1, 1, 1)


def test_a_budget_of_zero_can_be_met_by_weightless_choices_only():
    values, weights = [np.array([0.0, 1.0])] * 2, [np.array([5.0, 0.0])] * 2
    assert allocate(values, [Limit("latency", weights, 0.0)]) == (1, 1)
    with pytest.raises(SpecError, match=r"limit of latency must be at least .* 10, but got 0"):
        allocate(values, [Limit("latency", [np.array([5.0, 5.0])] * 2, 0.0)])


def test_a_limit_of_any_size_is_met_exactly():
    for scale in (1e-9, 1e-3, 1e6, 1e12):
        values = [np.array([0.0, 1.0, 3.0])] * 4
        weights = [scale * np.array([3.0, 2.0, 1.0])] * 4
        indices = allocate(values, [Limit("latency", weights, 9 * scale)])
        assert total(values, indices) == 3.0


def test_least_weight_within_a_loss_is_the_same_problem_turned_round():
    rng = np.random.default_rng(0)
    lost = [np.sort(rng.random(6)) for _ in range(4)]
    times = [np.sort(rng.random(6))[::-1].copy() for _ in range(4)]
    check(times, [Limit("lost saliency", lost, 1.0)])


def test_what_all_choices_share_counts_for_the_limit():
    values, weights = [np.array([0.0, 1.0])] * 2, [np.array([4.0, 1.0])] * 2
    assert sum(allocate(values, [Limit("latency", weights, 10.0, offset=5.0)])) == 1
    with pytest.raises(SpecError, match=r"can be reached, 7 us, but got 6\.5 us"):
        allocate(values, [Limit("latency", weights, 6.5, " us", offset=5.0)])


def test_limits_that_only_fail_together_are_named_together():
    values = [np.array([0.0, 0.0])]
    fast, small = Limit("latency", [np.array([1.0, 9.0])], 2.0), Limit("parameters", [np.array([9.0, 1.0])], 2.0)
    allocate(values, [fast])
    allocate(values, [small])
    with pytest.raises(SpecError, match=r"limit of parameters must be .* beside latency, 9, but got 2"):
        allocate(values, [fast, small])


def test_a_limit_that_fails_only_with_few_kinds_says_so():
    values, weights = [np.array([0.0, 1.0])] * 2, [np.array([4.0, 1.0])] * 2
    with pytest.raises(SpecError, match="at most 1 patterns, 5, but got 2"):
        allocate(values, [Limit("latency", weights, 2.0)], kinds=[[-1, 0], [-1, 1]], max_kinds=1)


def test_nothing_is_printed_by_the_solver(capfd):
    values, limits, _ = hundred_by_hundred(3)
    allocate(values, [Limit("latency", limits, 0.3 * sum(each[0] for each in limits))])
    assert capfd.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.parametrize("max_kinds", [None, 2])
def test_a_hundred_layers_of_a_hundred_choices(max_kinds, record_property):
    """A measurement, not a limit: `--junitxml` shows the seconds."""
    values, weights, kinds = hundred_by_hundred(0)
    for share in (0.2, 0.3, 0.5, 0.7):
        most = share * sum(each[0] for each in weights)
        started = time.process_time()
        indices = allocate(values, [Limit("latency", weights, most)], kinds=kinds, max_kinds=max_kinds)
        record_property(f"seconds at {share}", time.process_time() - started)
        assert total(weights, indices) <= most * (1 + 1e-8)


def hundred_by_hundred(seed):
    """Losses, times and patterns of 100 layers: dense and 5 patterns of 20 sparsities, with measuring noise."""
    rng = np.random.default_rng(seed)
    values, weights, kinds = [], [], []
    sparsities = np.linspace(0.5, 0.98, 20)
    for _ in range(100):
        dense, sensitivity, bend = rng.uniform(20, 200), np.exp(rng.normal()), rng.uniform(2.5, 5)
        losses, times = [[0.0]], [[dense]]
        for pattern in range(5):
            losses.append(sensitivity * (1 + pattern * rng.uniform(0.1, 0.5)) * sparsities**bend)
            times.append(2 + dense * (1 - sparsities) / rng.uniform(0.6, 1.1) * (1 + 0.02 * rng.normal(size=20)))
        values.append(np.concatenate(losses))
        weights.append(np.concatenate(times))
        kinds.append([-1, *np.repeat(np.arange(5), 20)])
    return values, weights, kinds
