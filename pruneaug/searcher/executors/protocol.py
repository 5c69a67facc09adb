"""What an executor is: where trials are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pruneaug.searcher.candidate import Evaluator
from pruneaug.searcher.progress import Progress
from pruneaug.searcher.work import Event, OnRung, TrialWork


@dataclass(frozen=True, slots=True)
class Setup:
    """What workers need once: the evaluator that makes networks, and the run's folder. `workers`: how many."""

    evaluator: Evaluator
    folder: Path
    workers: int = 1
    progress: Progress | None = None


class Executor(Protocol):
    """Trains what it is given, and tells what became of it. It knows nothing of strategies, studies and records.

    Its constructor takes the options of `search.executor.options`; `open` is called once, before anything else.
    """

    def open(self, setup: Setup) -> None:
        """Take what the workers need. Workers may be started now or when the first work comes."""
        ...

    @property
    def capacity(self) -> int:
        """How many works it takes at a time."""
        ...

    @property
    def is_isolated(self) -> bool:
        """Whether a work that dies, as when memory runs out, leaves the driver alive."""
        ...

    def submit(self, work: TrialWork) -> None:
        """Take one work; never called with more than `capacity` of them on their way."""
        ...

    def wait(self, on_rung: OnRung) -> Sequence[Event]:
        """What became of at least one work. Meanwhile `on_rung` answers works that come to a rung and wait there."""
        ...

    def stop(self, key: str) -> None:
        """Give up this work; there will be no event of it."""
        ...

    def close(self) -> None:
        """End all workers at once; what they had not finished is given up."""
        ...
