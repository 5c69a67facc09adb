"""What a tracker is, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

TrialData = Mapping[str, Any]
"""A finished trial as `trials/<number>.json` holds it; docs/formats.md lists the keys. Some may be absent or null."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """The run whose trials are told: its folder, its name, and the job with passwords hidden."""

    folder: Path
    name: str
    job: Mapping[str, Any]


@runtime_checkable
class Tracker(Protocol):
    """Records trials in another tool. It is made as `TrackerClass(run, **options)`, with `run` a Tracked.

    Whatever it raises is a warning to the user and ends the tracker, never the search.
    """

    def trial_finished(self, record: TrialData) -> None:
        """Record a finished trial.

        A search that goes on tells its earlier trials again, for a driver may die between a trial's end and this call:
        what is recorded already must not be recorded twice.
        """
        ...

    def closed(self) -> None:
        """The search ended or was stopped: write what is not written yet."""
        ...
