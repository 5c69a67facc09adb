"""Timing calls against each other: interleaved, so that a drift of the machine meets all of them alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

_QUIET = 1.2  # times the fastest run of a probe's call
_PATIENCE = 3  # times as many rounds as asked for, in search of quiet ones
LONGEST_WAIT_S = float(os.environ.get("PRUNEAUG_LONGEST_WAIT_S", "30"))  # for a quiet machine, in all
_PAUSE_S = 0.5  # between two times of looking whether it is quiet
_PHASE = 1.25  # times what is quiet: a state that lasts, where waiting helps
_LOOKS = 5  # each time: a single run may be slow by chance
SLICE_S = 500e-6  # of rounds between two runs of a probe, which take some 80 microseconds
_CHUNK_S = 20e-6  # shorter calls are timed several at a time: the clock itself costs some 50 ns


Probed = tuple[Sequence[float], Sequence[float]]
"""What a probe's runs before and after a round took."""


class Probe:
    """Calls that take always the same time on cores that are free.

    Where other tenants of a machine work on the same physical cores, arithmetic or loads take up to twice as long for
    parts of seconds, though no process of ours and no system time shows it. Where two cores of a virtual machine become
    threads of one, all takes twice as long, and where they are moved to other caches, what one thread wrote takes
    another some four times as long to read: for many seconds each.
    """

    def __init__(self, *calls: Callable[[], object], limits: Sequence[float] = ()) -> None:
        """`limits`: up to which multiple of its shortest time a call is quiet, 1.2 if not said."""
        self._calls = calls
        self._limits = limits or [_QUIET] * len(calls)
        self._fastest_s = [float("inf")] * len(calls)
        self._waited_s = 0.0
        self.patience = _PATIENCE

    def run(self) -> tuple[float, ...]:
        """Seconds of one run of each call, after another that wakes threads and fills caches."""
        seconds = []
        for call in self._calls:
            call()
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return self.noted(seconds)

    def wait(self) -> tuple[float, ...]:
        """Let the machine become quiet, for LONGEST_WAIT_S at most in all times together; the last run's seconds."""
        while self._waited_s < LONGEST_WAIT_S:
            for _ in range(_LOOKS):
                if self.slowness(seconds := self.run()) <= _PHASE:
                    return seconds
            self.settle(_PAUSE_S, seconds)
            self._waited_s += _PAUSE_S
        return self.run()

    def settle(self, seconds: float, run: Sequence[float]) -> None:
        """Give the machine so long to become quiet, after a run that was not."""
        time.sleep(seconds)

    def noted(self, seconds: Sequence[float]) -> tuple[float, ...]:
        """These seconds, which may be the fastest so far."""
        self._fastest_s[:] = [min(pair) for pair in zip(self._fastest_s, seconds, strict=True)]
        return tuple(seconds)

    def slowness(self, *runs: Sequence[float]) -> float:
        """The most that a call took in these runs, as a multiple of what is quiet."""
        return max(max(self.slownesses(run)) for run in runs)

    def slownesses(self, run: Sequence[float]) -> list[float]:
        """What each call took in this run, as a multiple of what is quiet."""
        return [t / (f * limit) for t, f, limit in zip(run, self._fastest_s, self._limits, strict=True)]

    def is_quiet(self, *runs: Sequence[float]) -> bool:
        """Whether every call took about its shortest time in these runs."""
        return self.slowness(*runs) <= 1


def interleaved_us(
    calls: Sequence[Callable[[], object]],
    *,
    budget_s: float,
    least: int = 8,
    most: int = 40,
    probe: Probe | None = None,
    slice_s: float = SLICE_S,
    before: Sequence[Callable[[], object] | None] = (),
) -> list[npt.NDArray[np.float64]]:
    """Microseconds of every run of every call, in rounds that run each call once: [runs] for each call.

    Rounds go on for about `budget_s`, but at least `least` and at most `most` of them. With a `probe` they begin when
    it is quiet or has waited long enough. It runs after every few rounds, and they go on until so many were quiet,
    which is when it took about its shortest time before and after them; after three times as many, or fewer after
    calls for which that was in vain, those that were disturbed the least are taken. About every `slice_s` it runs.

    `before` has for each call, if there are any, what runs before it each time and is not timed, or None.
    """
    last = probe.wait() if probe else ()
    steps = []
    once = 0.0
    for call, prepare in zip(calls, before or [None] * len(calls), strict=True):
        call()
        start = time.perf_counter()
        if prepare is not None:
            prepare()
        call()
        seconds = time.perf_counter() - start
        number = 1 if prepare is not None else max(1, min(20, round(_CHUNK_S / max(seconds, 1e-9))))
        steps.append((call, number, prepare))
        once += seconds * number
    rounds = max(least, min(most, int(budget_s / max(once, 1e-9))))
    if probe is None:
        return _by_call([_round(steps) for _ in range(rounds)])
    slice_rounds = max(1, min(rounds // 4, round(slice_s / max(once, 1e-9))))
    wanted = -(-rounds // slice_rounds)
    slices: list[list[list[float]]] = []
    probed: list[Probed] = []
    while len(slices) < wanted or (len(slices) < probe.patience * wanted and not enough(probed, probe, wanted)):
        slices.append([_round(steps) for _ in range(slice_rounds)])
        after = probe.run()
        probed.append((last, after))
        last = after
    # Where it is never quiet, waiting for it is in vain.
    was_quiet = enough(probed, probe, wanted)
    probe.patience = min(_PATIENCE, 2 * probe.patience) if was_quiet else max(1, probe.patience // 2)
    return _by_call([row for index in least_disturbed(probed, probe, wanted) for row in slices[index]])


def _round(steps: Sequence[tuple[Callable[[], object], int, Callable[[], object] | None]]) -> list[float]:
    """Seconds of each call, the mean of so many right after each other, with what runs before it."""
    row = []
    for call, number, prepare in steps:
        if prepare is not None:
            prepare()
        start = time.perf_counter()
        for _ in range(number):
            call()
        row.append((time.perf_counter() - start) / number)
    return row


def _by_call(rows: Sequence[Sequence[float]]) -> list[npt.NDArray[np.float64]]:
    return list(np.array(rows).T * 1e6)


def enough(probed: Sequence[Probed], probe: Probe, wanted: int) -> bool:
    """Whether so many rounds were quiet."""
    return sum(probe.is_quiet(*runs) for runs in probed) >= wanted


def least_disturbed(probed: Sequence[Probed], probe: Probe, wanted: int) -> list[int]:
    """The first `wanted` quiet rounds, in order; if there are fewer, the `wanted` least disturbed of all."""
    quiet = [index for index, runs in enumerate(probed) if probe.is_quiet(*runs)]
    if len(quiet) >= wanted:
        return quiet[:wanted]
    slowness = [probe.slowness(*runs) for runs in probed]
    return sorted(np.argsort(slowness, kind="stable")[:wanted].tolist())
