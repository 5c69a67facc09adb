"""Trial records: what was proposed, what became of it; one JSON file each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pruneaug.errors import RunError
from pruneaug.files import atomic_write_text
from pruneaug.searcher.space import assignment_from_json, assignment_to_json
from pruneaug.sparsity.patterns import Assignment

VERSION = 1
ROUNDING = 1e-9
"""Accuracies are differences of fractions: 0.98 - 0.97 must count as a loss of 0.01."""

State = Literal["complete", "skipped", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One finished trial.

    `complete`: trained and judged. `skipped`: not trained, as by its predicted latency it could not win, or because it
    is the network of another trial, `same_as`. `stopped`: a rung ended its fine-tuning; `rungs` is all that is known of
    its accuracy. `failed`: `error` says why. `accuracy_loss` is dense minus pruned validation accuracy, as fractions,
    and `violation` what it exceeds the limit by (the allowed loss; of objective `accuracy` the allowed latency, as a
    fraction of it), where that is known of a skipped trial too; `sparsity` is the fraction of zeros over all prunable
    layers; `latency_us` the predicted time of the whole network. `rungs`: (epochs, validation accuracy) on the way.
    `inherited_from`: the trial whose weights it began with, None for the dense ones; `inherited_refined`: as they were
    after that one's long fine-tuning. `attempts`: the workers it took. `seconds`: of its training; `own_seconds`: of
    the search beside it, up to this record.
    """

    number: int
    state: State
    params: Mapping[str, Any]
    assignment: Assignment
    sparsity: float
    latency_us: float
    accuracy_validation: float | None = None
    accuracy_loss: float | None = None
    violation: float | None = None
    epochs: float = 0.0
    seconds: float = 0.0
    error: str | None = None
    distributions: Mapping[str, str] = field(default_factory=dict)  # parameter -> Optuna's JSON of its range
    rungs: tuple[tuple[float, float], ...] = ()
    inherited_from: int | None = None
    attempts: int = 1
    own_seconds: float = 0.0
    inherited_refined: bool = False
    same_as: int | None = None

    @property
    def feasible(self) -> bool:
        """Whether it was judged and keeps the limit."""
        return self.state == "complete" and self.violation is not None and self.violation <= 0

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"version": VERSION, **fields, "assignment": assignment_to_json(self.assignment)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrialRecord:
        fields = {key: item for key, item in value.items() if key != "version"}
        rungs = tuple((float(epochs), float(accuracy)) for epochs, accuracy in fields.get("rungs", ()))
        return cls(**{**fields, "assignment": assignment_from_json(value["assignment"]), "rungs": rungs})


def excess(accuracy_loss: float, max_accuracy_loss: float) -> float:
    """What the loss exceeds the allowed one by; at most 0 if it is allowed. Rounding is not held against it."""
    difference = accuracy_loss - max_accuracy_loss
    return min(difference, 0.0) if difference <= ROUNDING else difference


def is_over(records: Mapping[int, TrialRecord], trials: int, timeout_s: float | None, running: int = 0) -> bool:
    """Whether a search of so many trials, or of so many seconds spent in trials, starts no more of them.

    The seconds of trials that run at the same time are added up; `running` trials have no record yet.
    """
    spent_s = sum(record.seconds for record in records.values())
    return len(records) + running >= trials or (timeout_s is not None and spent_s >= timeout_s)


def closest_trial(records: Mapping[int, TrialRecord]) -> TrialRecord | None:
    """The judged trial that lost least accuracy; of equal ones, the faster."""
    judged = [
        (record.accuracy_loss, record.latency_us, record.number)
        for record in records.values()
        if record.accuracy_loss is not None
    ]
    return records[min(judged)[2]] if judged else None


def write_record(folder: Path, record: TrialRecord) -> None:
    """Raises StorageError."""
    atomic_write_text(folder / f"{record.number}.json", json.dumps(record.to_json(), indent=1, allow_nan=False) + "\n")


def read_records(folder: Path) -> dict[int, TrialRecord]:
    """All records of a folder by number; none if there is no folder. Raises RunError for a file that is no record."""
    records = {}
    for path in folder.glob("*.json"):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["version"] != VERSION:
                raise ValueError(f"version {value['version']!r}, but this pruneaug reads {VERSION}")
            record = TrialRecord.from_json(value)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(
                f"{path} must be a trial record of this version, but is not ({type(error).__name__}: {error}); "
                "delete it to have the trial run again"
            ) from error
        records[record.number] = record
    return dict(sorted(records.items()))
