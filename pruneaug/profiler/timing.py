"""Timing calls against each other: interleaved, so that a drift of the machine meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

_CHUNK_S = 20e-6  # shorter calls are timed several at a time: the clock itself costs some 50 ns


def interleaved_us(
    calls: Sequence[Callable[[], object]], *, budget_s: float, least: int = 8, most: int = 60
) -> list[npt.NDArray[np.float64]]:
    """Microseconds of every run of every call, in rounds that run each call once: [runs] for each call.

    Rounds go on for about `budget_s`, but at least `least` and at most `most` of them.
    """
    repeats = []
    once = 0.0
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        repeats.append(max(1, min(20, round(_CHUNK_S / max(seconds, 1e-9)))))
        once += seconds * repeats[-1]
    rounds = max(least, min(most, int(budget_s / max(once, 1e-9))))
    times = np.empty((len(calls), rounds))
    for turn in range(rounds):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(repeats[index]):
                call()
            times[index, turn] = (time.perf_counter() - start) / repeats[index]
    return list(times * 1e6)
