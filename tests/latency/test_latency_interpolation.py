import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pruneaug.latency.interpolation import monotone_curve

times = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=7)


def grid(count):
    return [0.3 + 0.6 * index / max(1, count - 1) for index in range(count)]


def least_squares_by_brute_force(values):
    """The non-increasing sequence nearest to `values`: the best split into runs, each run at its mean."""
    best = None
    count = len(values)
    for cuts in itertools.product([False, True], repeat=count - 1):
        bounds = [0, *(at + 1 for at, cut in enumerate(cuts) if cut), count]
        fit = [np.mean(values[a:b]) for a, b in itertools.pairwise(bounds) for _ in range(a, b)]
        if all(a >= b - 1e-9 * abs(b) for a, b in itertools.pairwise(fit)):
            loss = sum((a - b) ** 2 for a, b in zip(fit, values))
            if best is None or loss < best[0]:
                best = loss, fit
    return best[1]


@given(times)
def test_at_measured_points_the_curve_is_the_nearest_sequence_that_never_rises(values):
    curve = monotone_curve(grid(len(values)), values)
    expected = least_squares_by_brute_force(values)
    assert [curve(x) for x in grid(len(values))] == pytest.approx(expected, rel=1e-6)


@given(times)
def test_the_curve_never_rises_and_stays_within_the_measured_times(values):
    assume(len(values) > 1)
    xs = grid(len(values))
    curve = monotone_curve(xs, values)
    ys = [curve(x) for x in np.linspace(xs[0], xs[-1], 101)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(ys))
    assert min(values) * (1 - 1e-9) <= min(ys) <= max(ys) <= max(values) * (1 + 1e-9)


@given(times, st.integers(0, 100))
def test_between_two_points_the_curve_lies_between_their_times(values, percent):
    falling = sorted(values, reverse=True)
    assume(len(values) > 1)
    xs = grid(len(values))
    x = xs[0] + (xs[-1] - xs[0]) * percent / 100
    left = max(index for index in range(len(xs)) if xs[index] <= x or index == 0)
    right = min(left + 1, len(xs) - 1)
    assert falling[right] * (1 - 1e-9) <= monotone_curve(xs, falling)(x) <= falling[left] * (1 + 1e-9)


def test_points_on_a_line_give_the_line():
    curve = monotone_curve([0.0, 0.5, 0.8, 1.0], [10.0, 6.0, 3.6, 2.0])
    assert [curve(x) for x in (0.1, 0.65, 0.93)] == pytest.approx([9.2, 4.8, 2.56])


def test_a_value_outside_by_a_rounding_error_is_the_end():
    curve = monotone_curve([0.1 + 0.2, 0.9], [3.0, 1.0])
    assert curve(0.3) == 3.0
