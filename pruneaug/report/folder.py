"""A run folder read at any moment: while it is searched, after a kill, or finished. Nothing is locked or written.

Every file of a run is replaced as a whole, so each one reads; but one may be newer than another, and any may be absent.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from pruneaug.errors import RunError
from pruneaug.report.data import Data, is_number, section

LAYERS = "layers.json"
"""Written beside a search: what its report needs and no trial's file holds."""
STATUS = "status.json"
"""Written beside a search: what it is doing."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty if it is missing or holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_job(folder: Path) -> dict[str, Any]:
    """What resolved.yaml holds. Raises RunError if the folder is none of a run."""
    try:
        value = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RunError(
            f"a run folder must hold resolved.yaml, but {folder} does not ({type(error).__name__}); "
            "name the `run` of a job that was searched"
        ) from error
    if not isinstance(value, dict):
        raise RunError(f"{folder}/resolved.yaml must hold a job, but holds {type(value).__name__}")
    return value


def trial_numbers(folder: Path) -> set[int]:
    """The numbers of the finished trials."""
    try:
        names = [entry.name for entry in os.scandir(folder / "trials")]
    except OSError:
        return set()
    return {int(stem) for name in names if name.endswith(".json") and (stem := name[:-5]).isdecimal()}


def read_trial(folder: Path, number: int) -> dict[str, Any]:
    """The record of one trial as it was written; empty if it cannot be read."""
    return read_object(folder / "trials" / f"{number}.json")


def trial_row(record: Data) -> dict[str, Any]:
    """A row of the report's `trials`."""
    latency_us, violation = record.get("latency_us"), record.get("violation")
    return {
        "number": record.get("number"),
        "state": record.get("state"),
        "latency_ms_predicted": latency_us / 1e3 if is_number(latency_us) else None,
        "accuracy_validation": record.get("accuracy_validation"),
        "accuracy_loss": record.get("accuracy_loss"),
        "feasible": record.get("state") == "complete" and is_number(violation) and violation <= 0,
        "sparsity": record.get("sparsity"),
        "epochs": record.get("epochs"),
        "rungs": [list(rung) for rung in record.get("rungs") or ()],
        "seconds": record.get("seconds"),
        "error": record.get("error"),
    }


def constraint_of(job: Data, dense_ms: float | None) -> dict[str, Any]:
    """The report's `constraint` of a resolved job."""
    search = section(job, "search")
    limit_ms, ratio = search.get("max_latency_ms"), search.get("max_latency_ratio")
    if is_number(ratio) and is_number(dense_ms):
        limit_ms = ratio * dense_ms
    return {
        "max_accuracy_loss": search.get("max_accuracy_loss"),
        "expected_recovery": search.get("expected_recovery") or 0.0,
        "objective": search.get("objective") or "latency",
        "max_latency_ms": limit_ms,
    }


def is_driven(folder: Path) -> bool:
    """Whether the run is being searched now: its status says so, and its driver, not killed since, holds the lock.

    Asks without taking the lock, and does not open it in the process that has it: closing any file ends all locks of a
    process on it.
    """
    status = read_object(folder / STATUS)
    if not status.get("searching") or status.get("pid") == os.getpid():
        return bool(status.get("searching"))
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        with (folder / "lock").open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, request)
    except OSError:
        return False
    return bool(struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK)


def layer_rows(facts: Data, assignment: Mapping[str, Data]) -> list[dict[str, Any]]:
    """Rows of the report's `layers` from layers.json; times between those of the list are interpolated."""
    rows = []
    for layer in facts.get("layers") or ():
        choice = assignment.get(layer["name"]) or {"pattern": "dense", "sparsity": 0.0}
        rows.append(
            {
                "name": layer["name"],
                "op": layer["op"],
                "calls": layer["calls"],
                "pattern": choice["pattern"],
                "sparsity": choice["sparsity"],
                "latency_us_dense": layer["latency_us_dense"],
                "latency_us": value_of(layer, choice, "latency_us"),
            }
        )
    return rows


def value_of(layer: Data, choice: Data, key: str) -> float | None:
    """What layers.json says of `key` for a choice of one of its layers; None if it does not know it."""
    known = sorted(
        (row["sparsity"], row[key])
        for row in layer.get("choices") or ()
        if row["pattern"] == choice["pattern"] and is_number(row.get(key))
    )
    sparsity = choice["sparsity"]
    if choice["pattern"] == "dense" and not known and key == "latency_us":
        return layer.get("latency_us_dense")
    if not known or not is_number(sparsity):
        return None
    if sparsity <= known[0][0]:
        return float(known[0][1])
    for (low, at_low), (high, at_high) in pairwise(known):
        if sparsity <= high:
            return float(at_low + (sparsity - low) / (high - low) * (at_high - at_low))
    return float(known[-1][1])
