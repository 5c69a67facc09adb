"""What was measured on a GPU, a line of JSON each, on the disk as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from pruneaug.errors import LatencyTableError
from pruneaug.files import append_line
from pruneaug.platforms.gpu_state import held_down
from pruneaug.profiler.cuda.cases import Group, Subject

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class GpuRecord:
    """The time of one subject of one group, or why there is none.

    Times are of one launch. Those of the first half of the rounds are `choice_us`, which chooses the fastest subject;
    those of the second half are its time: a lucky reading earns nothing.
    """

    group: Group
    subject: Subject
    gpu: str  # its name
    measured_at: str  # ISO 8601, UTC
    latency_us: float | None = None  # median
    p10_us: float | None = None
    p90_us: float | None = None
    choice_us: float | None = None
    rounds: int = 0  # of the second half
    launches: int = 0  # in a round
    weight_copies: int = 0  # in turn
    max_relative_error: float | None = None  # norm(result - reference) / norm(reference), against float64
    zeros: float | None = None  # the share of weights that are zero
    state: Mapping[str, Any] = field(default_factory=dict)  # `GpuState` before and during the rounds, then the worst
    not_recorded: str | None = None  # why its launches were no CUDA graph, so that the time is Python's too
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        rest = {name: getattr(self, name) for name in self.__slots__ if name not in ("group", "subject")}
        subject = {"library": self.subject.library, "variant": self.subject.variant}
        return {"version": SCHEMA_VERSION, **self.group.to_json(), **subject, **rest}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GpuRecord:
        """Read what `to_json` gave. Raises LatencyTableError for anything else."""
        try:
            if value["version"] != SCHEMA_VERSION:
                raise ValueError(f"version must be {SCHEMA_VERSION}, but got {value['version']!r}")
            rest = {name: value[name] for name in cls.__slots__ if name not in ("group", "subject")}
            return cls(Group.from_json(value), Subject(value["library"], value["variant"]), **rest)
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise LatencyTableError(
                f"a record of a GPU must be one that `bench kernels` wrote, but {error!r}; choose another file"
            ) from error


def timed(group: Group, subject: Subject, gpu: str, times_us: npt.NDArray[np.float64], **facts: Any) -> GpuRecord:
    """The record of a subject from its times of all rounds; `facts` are the other fields."""
    half = len(times_us) // 2
    p10, p50, p90 = map(float, np.percentile(times_us[half:], (10, 50, 90)))
    choice = float(np.median(times_us[:half]))
    return GpuRecord(group, subject, gpu, _now(), p50, p10, p90, choice, rounds=len(times_us) - half, **facts)


def failed(group: Group, subject: Subject, gpu: str, error: str) -> GpuRecord:
    """The record of a subject that has failed now."""
    return GpuRecord(group, subject, gpu, _now(), error=error)


def by_speed(records: Iterable[GpuRecord]) -> list[GpuRecord]:
    """Those that have a time, the fastest first, by the half of the rounds that is not their time."""
    return sorted(
        (record for record in records if record.choice_us is not None), key=lambda record: record.choice_us or 0.0
    )


def warnings_of(records: Collection[GpuRecord]) -> list[str]:
    """Warnings if something held the clocks down while groups were timed, or if launches were not recorded."""
    states = [record.state["during"] for record in records if record.state]
    reasons = {reason for state in states for reason in held_down(state["held_down_by"])}
    warnings = []
    if reasons:
        clocks = [state["sm_mhz"] for state in states if state["sm_mhz"]]
        at = f", at {median(clocks):.0f} MHz in the median" if clocks else ""
        warnings = [f"clocks were held down by {', '.join(sorted(reasons))}{at}; ratios within a group still compare"]
    single = {str(record.subject): record.not_recorded for record in records if record.not_recorded is not None}
    return warnings + [
        f"times of {subject} are those of single calls, and of Python, because no CUDA graph records it: {why}"
        for subject, why in single.items()
    ]


@dataclass(frozen=True, slots=True)
class Journal:
    """Records of one GPU in a file, in the order in which they were made."""

    path: Path

    def append(self, record: GpuRecord) -> None:
        """Keep a record; it is on the disk when this returns. Raises StorageError."""
        append_line(self.path, json.dumps(record.to_json()))

    def load(self, gpu: str) -> dict[tuple[Group, Subject], GpuRecord]:
        """The last record of each subject of each group.

        Raises LatencyTableError for a line that is no record, or is of another GPU than `gpu`. A last line that a crash
        cut short is left out.
        """
        found = {}
        for number, line in self._lines():
            try:
                record = GpuRecord.from_json(json.loads(line))
            except (ValueError, LatencyTableError) as error:
                raise LatencyTableError(f"{self.path}:{number}: {error}") from error
            if record.gpu != gpu:
                raise LatencyTableError(
                    f"{self.path} must hold times of one GPU, but holds some of {record.gpu!r} and this is {gpu!r}; "
                    "name another file"
                )
            found[record.group, record.subject] = record
        return found

    def _lines(self) -> Iterator[tuple[int, str]]:
        if self.path.exists():
            whole, _, _ = self.path.read_text(encoding="utf-8").rpartition("\n")
            yield from ((number, line) for number, line in enumerate(whole.splitlines(), 1) if line)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
