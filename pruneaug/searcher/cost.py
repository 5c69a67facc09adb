"""What a search costs: seconds of training, and its own beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any


def ending_s(trial_s: float, final_s: float, finalists: int, repeats: int, workers: int = 1) -> float:
    """Seconds of what follows a search's trials: the finalists, then the winner made again, by so many at a time.

    trial_s, final_s: of the fine-tuning of one trial, and of one final fine-tuning.
    """
    return ceil(finalists / workers) * final_s + ceil(repeats / workers) * (trial_s + final_s)


class Clock:
    """Tells the time in which trials train (or may train) from the driver's own."""

    def __init__(self) -> None:
        self._began = self._lap = time.monotonic()
        self._training = self._training_lap = 0.0

    @contextmanager
    def training(self) -> Iterator[None]:
        """The driver waits for trials."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._training += time.monotonic() - began

    @contextmanager
    def own(self) -> Iterator[None]:
        """Inside `training`, the driver works itself."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._training -= time.monotonic() - began

    def lap(self) -> float:
        """The driver's own seconds since the last lap."""
        now = time.monotonic()
        own = (now - self._lap) - (self._training - self._training_lap)
        self._lap, self._training_lap = now, self._training
        return max(own, 0.0)

    @property
    def has_laps(self) -> bool:
        """Whether anything was trained, or a trial ended."""
        return self._training > 0 or self._lap > self._began

    def totals(self, before: dict[str, Any]) -> dict[str, float]:
        """`seconds_own` and `seconds_waiting` of this driver added to those of earlier ones."""
        own = time.monotonic() - self._began - self._training
        return {
            "seconds_own": float(before.get("seconds_own", 0.0)) + own,
            "seconds_waiting": float(before.get("seconds_waiting", 0.0)) + self._training,
        }
