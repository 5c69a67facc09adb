"""Runtimes of networks in turns, each in its own process, until each had enough turns on a quiet machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from pruneaug.profiler.lines import LineProcess, ProcessEnded
from pruneaug.profiler.timing import Probe, Probed, enough, least_disturbed

PATIENCE = 3  # times as many rounds as asked for, in search of quiet ones
LONGEST_TURN_S = 600.0  # three calls to warm up and three timed ones, of a network that takes a minute and more
LEAST = 3  # timed calls of a turn


@dataclass(slots=True)
class _Turns:
    """Of one process: the times in microseconds, and the probe's runs before and after, of each turn."""

    times_us: list[list[float]] = field(default_factory=list)
    probed: list[Probed] = field(default_factory=list)


class TurnTaking:
    """Asks these processes for `rounds` quiet turns each, of about `turn_s` seconds; one that ends leaves with its
    error. `processes` keeps those that have not."""

    def __init__(self, processes: dict[int, LineProcess], probe: Probe | None, rounds: int, turn_s: float) -> None:
        self.processes = processes
        self.errors: dict[int, str] = {}
        self._probe, self._rounds, self._turn_s = probe, rounds, turn_s
        self._turns = {index: _Turns() for index in processes}
        self._before: tuple[float, ...] = ()

    def go_on(self) -> bool:
        """Whether another round is needed: some process lacks quiet turns, and patience has not ended."""
        return any(self._needs_more(index) for index in self.processes)

    def _needs_more(self, index: int) -> bool:
        done = len(self._turns[index].times_us)
        if self._probe is None or done < self._rounds:
            return done < self._rounds
        return done < PATIENCE * self._rounds and self.is_disturbed(index)

    def round(self) -> None:
        """One turn of every process."""
        for index, process in list(self.processes.items()):
            if self._probe is not None and not (self._before and self._probe.is_quiet(self._before)):
                self._before = self._probe.wait()
            try:
                process.send({"seconds": self._turn_s, "least": LEAST})
                times = json.loads(process.read(LONGEST_TURN_S + self._turn_s))["times_us"]
            except ProcessEnded as error:
                self.errors[index] = f"its process {error}"
                del self.processes[index]
                continue
            after = self._probe.run() if self._probe is not None else ()
            self._turns[index].times_us.append(times)
            self._turns[index].probed.append((self._before, after))
            self._before = after

    def is_disturbed(self, index: int) -> bool:
        """Whether a process lacks quiet turns."""
        return self._probe is not None and not enough(self._turns[index].probed, self._probe, self._rounds)

    def times_us(self, index: int) -> list[float]:
        """The microseconds of every call in the quiet turns of a process, or in the least disturbed ones."""
        turns = self._turns[index]
        chosen: Sequence[int] = range(self._rounds)
        if self._probe is not None:
            chosen = least_disturbed(turns.probed, self._probe, self._rounds)
        return [value for turn in chosen for value in turns.times_us[turn]]
