"""The learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Callable

from pruneaug.spec.models import TrainSpec

Rate = Callable[[int, int], float]
"""(step, counted from 0, total steps) -> learning rate"""


def learning_rate(step: float, total: float, spec: TrainSpec) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up over its first part, then the schedule."""
    warmup = round(spec.warmup * total)
    if step < warmup:
        return spec.learning_rate * (step + 1) / (warmup + 1)
    if spec.schedule == "constant":
        return spec.learning_rate
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
