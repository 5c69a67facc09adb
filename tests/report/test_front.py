"""Fronts and areas against plain counting."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.report.front import Point, Reference, covered_over_epochs, hypervolume, pareto_front

REFERENCE = Reference(4.0, 0.1)
COORDINATES = st.tuples(st.integers(0, 12), st.integers(-3, 12))


def points(coordinates):
    """Points on a coarse grid, so that ties are common."""
    return [Point(0.4 * x, 0.01 * y, trial) for trial, (x, y) in enumerate(coordinates)]


def beaten(point, other):
    """Whether `other` is at least as good in both and better in one, or equal and earlier."""
    no_worse = other.latency_ms <= point.latency_ms and other.loss <= point.loss
    equal = (other.latency_ms, other.loss) == (point.latency_ms, point.loss)
    return no_worse and (not equal or other.trial < point.trial)


def counted(some, reference, cells=400):
    """The share of the rectangle that points cover, and what lies below loss 0, by counting cells of a grid."""
    low = min([0.0, *(point.loss for point in some)])
    x = (np.arange(cells) + 0.5) / cells * reference.latency_ms
    y = low + (np.arange(cells) + 0.5) / cells * (reference.loss - low)
    covered = np.zeros((cells, cells), bool)
    for point in some:
        covered |= (x[:, None] >= point.latency_ms) & (y[None, :] >= point.loss)
    return covered.mean() * (reference.loss - low) / reference.loss


@given(st.lists(COORDINATES, max_size=25))
def test_the_front_holds_what_no_other_point_beats(coordinates):
    some = points(coordinates)
    expected = [point for point in some if not any(beaten(point, other) for other in some)]
    assert pareto_front(some) == sorted(expected)


@given(st.lists(COORDINATES, max_size=25))
def test_the_covered_area_is_that_of_counted_cells(coordinates):
    some = points(coordinates)
    assert hypervolume(pareto_front(some), REFERENCE) == pytest.approx(counted(some, REFERENCE), abs=0.02)


def test_the_covered_area_agrees_with_random_darts():
    rng = random.Random(1)
    some = [Point(rng.uniform(0.5, 3.5), rng.uniform(0.0, 0.1), trial) for trial in range(12)]
    darts = np.random.default_rng(2).uniform((0, 0), (REFERENCE.latency_ms, REFERENCE.loss), (200_000, 2))
    hit = np.zeros(len(darts), bool)
    for point in some:
        hit |= (darts[:, 0] >= point.latency_ms) & (darts[:, 1] >= point.loss)
    assert hypervolume(pareto_front(some), REFERENCE) == pytest.approx(hit.mean(), abs=5e-3)


def test_points_outside_the_reference_cover_nothing_and_gained_accuracy_counts():
    assert hypervolume([Point(4.0, 0.0, 0)], REFERENCE) == 0
    assert hypervolume([Point(1.0, 0.1, 0)], REFERENCE) == 0
    assert hypervolume([], REFERENCE) == 0
    assert hypervolume([Point(2.0, -0.05, 0)], REFERENCE) == pytest.approx(0.5 * 1.5)


@given(st.lists(st.tuples(COORDINATES, st.booleans(), st.integers(0, 4)), max_size=20))
def test_each_step_covers_what_the_trials_up_to_it_cover(trials):
    some = points([coordinates for coordinates, _, _ in trials])
    costs = [(epochs, point if judged else None, point.trial) for point, (_, judged, epochs) in zip(some, trials)]
    steps = covered_over_epochs(costs, REFERENCE)
    for step in steps[1:]:
        until = costs[: step.trial + 1]
        judged = [point for _, point, _ in until if point is not None]
        assert step.covered == pytest.approx(hypervolume(pareto_front(judged), REFERENCE))
        assert step.epochs == sum(epochs for epochs, _, _ in until)
    everything = pareto_front(point for _, point, _ in costs if point is not None)
    assert steps[-1].covered == pytest.approx(hypervolume(everything, REFERENCE))
