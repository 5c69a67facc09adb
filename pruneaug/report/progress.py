"""Progress on stderr: bars with the remaining time on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

LINE_INTERVAL_S = 10.0
"""A log gets at most one line of a stage in this time, beside the first and the last."""


@dataclass(slots=True)
class _Running:
    name: str
    started: float
    shown: float
    done: float = 0.0
    total: float | None = None
    bar: TaskID | None = None


class Progress:
    """Shows stages of countable work. A stage that begins while another runs is part of it, and leaves no trace.

    >>> with Progress() as progress, progress.stage("Profile", total=60) as stage:
    ...     stage.advance(note="conv 3x3")
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True, emoji=False)
        self._clock = clock
        self._bars = _bars(self._console) if self._console.is_terminal else None
        self._running: list[_Running] = []

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close_after(0)
        if self._bars is not None:
            self._bars.stop()

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Iterator[Stage]:
        """A stage of `total` steps; None where the number is not known yet."""
        stage = Stage(self, name, total)
        stage.update(0)
        try:
            yield stage
        finally:
            for depth, running in enumerate(self._running):
                if running.name == name:
                    self._close_after(depth)
                    break

    def update(self, name: str, done: float, total: float | None, note: str = "") -> None:
        """Say how far the stage `name` is. The first call begins it, `done == total` ends it.

        Stages that began after it are over, whether they reached their end or not.
        """
        running = self._find(name)
        running.done, running.total = done, total
        if self._bars is not None and running.bar is not None:
            self._bars.update(running.bar, completed=done, total=total, note=note)
        elif self._clock() - running.shown >= LINE_INTERVAL_S:
            running.shown = self._clock()
            self.message(f"{name}: {_state(running, self._clock())}{f', {note}' if note else ''}")
        if total is not None and done >= total > 0:
            self._close_after(self._running.index(running))

    def message(self, text: str) -> None:
        """One line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _find(self, name: str) -> _Running:
        for depth, running in enumerate(self._running):
            if running.name == name:
                self._close_after(depth + 1)
                return running
        now = self._clock()
        running = _Running(name, started=now, shown=now)
        if self._bars is not None:
            running.bar = self._bars.add_task(name, total=None, note="")
        elif not self._running:
            self.message(f"{name}: started")
        self._running.append(running)
        return running

    def _close_after(self, depth: int) -> None:
        """End the stages from `depth` inwards; only an outermost one leaves its bar or a last line."""
        while len(self._running) > depth:
            running = self._running.pop()
            if self._bars is not None and running.bar is not None:
                self._bars.stop_task(running.bar)
                if self._running:
                    self._bars.remove_task(running.bar)
            elif not self._running:
                self.message(f"{running.name}: {running.done:,.0f} done in {_time(self._clock() - running.started)}")


class Stage:
    """A stage that counts its own steps."""

    def __init__(self, progress: Progress, name: str, total: float | None) -> None:
        self._progress = progress
        self._name = name
        self.done = 0.0
        self.total = total

    def advance(self, steps: float = 1, note: str = "") -> None:
        self.update(self.done + steps, note=note)

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Set what is done; `total` may become known late."""
        self.done = done
        self.total = self.total if total is None else total
        self._progress.update(self._name, done, self.total, note)


def _state(running: _Running, now: float) -> str:
    if running.total is None:
        return f"{running.done:,.0f} done"
    left = (now - running.started) * (running.total - running.done) / running.done if running.done > 0 else None
    return f"{running.done:,.0f} of {running.total:,.0f}" + (f", {_time(left)} left" if left is not None else "")


def _time(seconds: float) -> str:
    """75 -> "1:15", 4521 -> "1:15:21"."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _bars(console: Console) -> Bars:
    return Bars(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=console,
    )
