"""Fronts of latency against accuracy loss: which trials no other beats, and how much of the plane they cover."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """A judged trial: predicted latency and accuracy lost against dense, both better when lower."""

    latency_ms: float
    loss: float
    trial: int


@dataclass(frozen=True, slots=True)
class Reference:
    """The corner that areas are measured from: the dense network's latency, and a loss that nobody wants."""

    latency_ms: float
    loss: float


@dataclass(frozen=True, slots=True)
class Step:
    """The area that was covered once so many epochs were spent, and the trial that they were spent on."""

    epochs: float
    covered: float
    trial: int


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other equals or beats in both, fastest first; of equal ones, the first trial."""
    front: list[Point] = []
    for point in sorted(points):
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return front


def hypervolume(front: Sequence[Point], reference: Reference) -> float:
    """The share of the rectangle from (0 ms, loss 0) to the reference that some point of a front is better than.

    A network that gains accuracy covers what lies below 0 too, so the share may exceed 1.
    """
    covered, upper = 0.0, reference.loss
    for point in front:  # falling losses: each adds the stripe between its loss and that of the next faster one
        if point.latency_ms < reference.latency_ms and point.loss < upper:
            covered += (reference.latency_ms - point.latency_ms) * (upper - point.loss)
            upper = point.loss
    return covered / (reference.latency_ms * reference.loss)


def covered_over_epochs(costs: Iterable[tuple[float, Point | None, int]], reference: Reference) -> list[Step]:
    """After each trial of (epochs, point or None, number), in order, what all of them together cover."""
    front: list[Point] = []
    steps, spent = [Step(0.0, 0.0, -1)], 0.0
    for epochs, point, number in costs:
        spent += epochs
        covered = steps[-1].covered
        if point is not None and not _is_beaten(point, front):
            front = pareto_front([*front, point])
            covered = hypervolume(front, reference)
        if epochs > 0 or covered > steps[-1].covered:
            steps.append(Step(spent, covered, number))
    return steps


def _is_beaten(point: Point, front: Sequence[Point]) -> bool:
    at = bisect_left(front, point)
    return at > 0 and front[at - 1].loss <= point.loss
