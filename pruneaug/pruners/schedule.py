"""The cubic schedule of sparsity (Zhu and Gupta, 2017, arXiv:1710.01878)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pruneaug.errors import SpecError
from pruneaug.sparsity.patterns import Assignment, LayerChoice


@dataclass(frozen=True, slots=True)
class Ramp:
    """Sparsity rises from `initial` at progress `begin` to what is asked at `end`, fast at first, then slowly.

    `steps` is how often it is raised on this way; None: at every progress.
    """

    begin: float
    end: float
    initial: float = 0.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin <= self.end <= 1.0:
            raise SpecError(f"0 <= begin <= end <= 1 must hold for a schedule, but got {self.begin} and {self.end}")
        if not 0.0 <= self.initial < 1.0:
            raise SpecError(f"a schedule's `initial` sparsity must lie in [0, 1), but got {self.initial}")
        if self.steps is not None and self.steps < 1:
            raise SpecError(f"a schedule's `steps` must be at least 1, but got {self.steps}")

    def way(self, progress: float) -> float:
        """How far along the schedule is, in [0, 1], in whole steps."""
        if progress >= self.end:
            return 1.0
        if progress <= self.begin:
            return 0.0
        way = (progress - self.begin) / (self.end - self.begin)
        return way if self.steps is None else int(way * self.steps + 1e-9) / self.steps

    def assignment(self, asked: Assignment, way: float) -> Mapping[str, LayerChoice]:
        """The assignment of this point of the way: s + (initial - s) * (1 - way) ** 3 for each asked sparsity s."""

        def now(choice: LayerChoice) -> float:
            lacking = max(0.0, choice.sparsity - self.initial)
            return choice.sparsity - lacking * (1.0 - way) ** 3

        return {
            name: choice if choice.is_dense else replace(choice, sparsity=now(choice)) for name, choice in asked.items()
        }
