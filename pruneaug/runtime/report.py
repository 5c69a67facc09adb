"""What a compiled network consists of: which kernels, and what has none of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pruneaug.kernels.products import PRODUCTS
from pruneaug.runtime.steps import KernelStep, Steps


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step: the layer or operators that it computes, and our kernel; no kernel means TVM's own loops."""

    origin: str
    kernel: str | None


@dataclass(frozen=True, slots=True)
class CompileReport:
    """The steps of a compiled network, in the order of execution."""

    steps: tuple[StepReport, ...]

    @classmethod
    def of(cls, steps: Steps) -> CompileReport:
        return cls(
            tuple(
                StepReport(step.origin, step.call.name if isinstance(step, KernelStep) else None)
                for step in steps.steps
            )
        )

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The operators that have no kernel of ours, a string for each run of them."""
        return tuple(step.origin for step in self.steps if step.kernel is None)

    @property
    def products(self) -> int:
        """How many calls of linear layers and convolutions our kernels compute."""
        return sum(step.kernel in PRODUCTS for step in self.steps)

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(step) for step in self.steps]

    @classmethod
    def from_json(cls, value: Sequence[dict[str, Any]]) -> CompileReport:
        return cls(tuple(StepReport(**step) for step in value))
