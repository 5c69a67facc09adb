"""Progress on stderr: bars with the remaining time on a terminal, plain lines in a log.

A search has a table above the bars, and in a log a line for each finished trial.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from pruneaug.report.live import live_table
from pruneaug.report.watch import RunWatch
from pruneaug.report.words import seconds as seconds_words

SEARCH = "Search"
_TRIAL = re.compile(r"Trial (\d+)")
_POLL_S = 0.5
_SOON_S = 5.0
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

    The stages "Trial <number>" are parts of "Search" that may run beside each other. `run` is the folder of the search
    whose trials are shown, if there is one. stopping: whether the user asked to stop, which the table then says.

    >>> with Progress() as progress, progress.stage("Profile", total=60) as stage:
    ...     stage.advance(note="conv 3x3")
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        run: str | Path | None = None,
    ) -> None:
        self._console = console or Console(stderr=True, emoji=False)
        self._clock = clock
        self._running: list[_Running] = []
        self._trials: dict[str, _Running] = {}
        self._watch = None if run is None else RunWatch(run)
        self._is_searched = False
        self._polled = float("-inf")
        self._lock = threading.Lock()  # the bars are drawn by a thread of their own; held wherever the watch is used
        self.stopping = False
        self._bars = _bars(self._console, self._table) if self._console.is_terminal else None

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
        if name == SEARCH and self._watch is not None:
            self._follow(self._watch, total)
        running = self._find(name)
        running.done, running.total = done, total
        if self._bars is not None and running.bar is not None:
            self._bars.update(running.bar, completed=done, total=total, note=note)
        elif self._clock() - running.shown >= LINE_INTERVAL_S and not (name == SEARCH and self._watch is not None):
            running.shown = self._clock()
            self.message(f"{name}: {_state(running, self._clock())}{f', {note}' if note else ''}")
        if total is not None and done >= total > 0 and running in self._running:
            self._close_after(self._running.index(running))

    def message(self, text: str) -> None:
        """One line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _follow(self, watch: RunWatch, wanted: float | None) -> None:
        """What a search says of its trials: in a log a line for each that finished."""
        with self._lock:
            watch.wanted = None if wanted is None else int(wanted)
            new = watch.poll()
            over = [name for name in self._trials if _trial_number(name) in watch.rows]
        for name in over:
            self._end_trial(name)
        if self._bars is None and not self._is_searched:
            self._find(SEARCH)  # its first line comes before those of its trials
            if new:
                self.message(f"Search: {len(new)} trials are finished already, {watch.counts_words()}")
        elif self._bars is None:
            for row in new:
                self.message(f"Search: {watch.trial_words(row)}; {self._search_words(watch)}")
        self._is_searched = True

    def _search_words(self, watch: RunWatch) -> str:
        left = watch.seconds_left
        wanted = "" if watch.wanted is None else f" of {watch.wanted}"
        return f"{len(watch.rows)}{wanted}" + (
            "" if left is None or left < _SOON_S else f", about {seconds_words(left)} left"
        )

    def _table(self) -> Iterable[RenderableType]:
        """What stands above the bars."""
        if self._watch is None or not self._is_searched:
            return ()
        with self._lock:
            if self._clock() - self._polled >= _POLL_S:
                self._polled = self._clock()
                self._watch.running = {_trial_number(name) for name in tuple(self._trials)}
                self._watch.poll()
            return (live_table(self._watch, self.stopping),)

    def _begin_trial(self, name: str) -> _Running:
        if name not in self._trials:
            now = self._clock()
            self._trials[name] = running = _Running(name, started=now, shown=now)
            if self._bars is not None:
                running.bar = self._bars.add_task(name, total=None, note="")
        return self._trials[name]

    def _end_trial(self, name: str) -> None:
        running = self._trials.pop(name)
        if self._bars is not None and running.bar is not None:
            self._bars.remove_task(running.bar)

    def _find(self, name: str) -> _Running:
        if _TRIAL.fullmatch(name) and any(running.name == SEARCH for running in self._running):
            return self._begin_trial(name)
        for depth, running in enumerate(self._running):
            if running.name == name:
                self._close_after(depth + 1)
                if self._watch is None:
                    self._end_trials()
                return running
        now = self._clock()
        running = _Running(name, started=now, shown=now)
        if self._bars is not None:
            running.bar = self._bars.add_task(name, total=None, note="")
        elif not self._running:
            self.message(f"{name}: started")
        self._running.append(running)
        return running

    def _end_trials(self) -> None:
        for name in tuple(self._trials):
            self._end_trial(name)

    def _close_after(self, depth: int) -> None:
        """End the stages from `depth` inwards; only an outermost one leaves its bar or a last line."""
        while len(self._running) > depth:
            running = self._running.pop()
            if running.name == SEARCH:
                self._end_trials()
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


def _trial_number(name: str) -> int:
    return int(name.rpartition(" ")[2])


class _BarsBelow(Bars):
    """Bars with something above them."""

    def __init__(
        self, *columns: ProgressColumn, console: Console, above: Callable[[], Iterable[RenderableType]]
    ) -> None:
        self._above = above
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from self._above()
        yield from super().get_renderables()


def _bars(console: Console, above: Callable[[], Iterable[RenderableType]]) -> Bars:
    return _BarsBelow(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=console,
        above=above,
    )
