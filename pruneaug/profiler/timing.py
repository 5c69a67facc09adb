"""Timing calls against each other: interleaved, so that a drift of the machine meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

_QUIET = 1.2  # times the probe's fastest run
_PATIENCE = 6  # times as many rounds as asked for, in search of quiet ones
_CHUNK_S = 20e-6  # shorter calls are timed several at a time: the clock itself costs some 50 ns


class Probe:
    """A call that takes always the same time on cores that are free.

    Where other tenants of a machine work on the same physical cores, arithmetic takes up to twice as long for parts of
    seconds, though no process of ours and no system time shows it.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.fastest_s = float("inf")

    def run(self) -> float:
        """Seconds of one run."""
        start = time.perf_counter()
        self._call()
        seconds = time.perf_counter() - start
        self.fastest_s = min(self.fastest_s, seconds)
        return seconds


def interleaved_us(
    calls: Sequence[Callable[[], object]],
    *,
    budget_s: float,
    least: int = 8,
    most: int = 60,
    probe: Probe | None = None,
) -> list[npt.NDArray[np.float64]]:
    """Microseconds of every run of every call, in rounds that run each call once: [runs] for each call.

    Rounds go on for about `budget_s`, but at least `least` and at most `most` of them. With a `probe` they go on until
    so many were quiet, which is when the probe took about its shortest time before and after; after some six times as
    many, those that were disturbed the least are taken.
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
    times: list[list[float]] = []
    disturbed: list[float] = []  # seconds of the probe, the longer of those before and after each round
    kept: list[int] = []
    before = probe.run() if probe else 0.0
    while len(kept) < rounds and len(times) < _PATIENCE * rounds:
        row = []
        for call, number in zip(calls, repeats):
            start = time.perf_counter()
            for _ in range(number):
                call()
            row.append((time.perf_counter() - start) / number)
        times.append(row)
        after = probe.run() if probe else 0.0
        disturbed.append(max(before, after))
        before = after
        quiet = _QUIET * probe.fastest_s if probe else 0.0
        kept = [index for index, seconds in enumerate(disturbed) if seconds <= quiet]
    if len(kept) < rounds:
        kept = sorted(np.argsort(disturbed, kind="stable")[:rounds].tolist())
    return list(np.array([times[index] for index in kept[:rounds]]).T * 1e6)
