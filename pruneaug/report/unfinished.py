"""The report's data of a run that was not exported yet, from whatever its folder holds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pruneaug.report.analysis import dense_caution
from pruneaug.report.data import VERSION, Data, best_feasible, is_number, section
from pruneaug.report.folder import (
    LAYERS,
    STATUS,
    constraint_of,
    is_driven,
    layer_rows,
    read_object,
    read_trial,
    trial_numbers,
    trial_row,
)
from pruneaug.report.holding import layer_facts


def unfinished_report(folder: Path, job: Data) -> dict[str, Any]:
    """What is known of a run now, in the form of report.json; `job` is its resolved job without passwords.

    `best` is the network that the search ended with, or else the best trial so far.
    """
    facts, records = network_facts(folder), trial_records(folder)
    dense, dense_us = read_object(folder / "dense" / "record.json"), facts.get("latency_us_dense")
    dense_ms = dense_us / 1e3 if is_number(dense_us) else None
    data: dict[str, Any] = {
        "version": VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "job": {"name": folder.name, "spec": job},
        "platform": facts.get("platform"),
        "network": facts.get("network"),
        "validation_examples": facts.get("validation_examples"),
        "constraint": constraint_of(job, dense_ms),
        "dense": {
            "accuracy_validation": dense.get("accuracy_validation"),
            "accuracy_chance": dense.get("accuracy_chance"),
            "latency_ms_predicted": dense_ms,
            "sparsity": 0.0,
        },
        "best": None,
        "kept_dense": facts.get("kept_dense") or [],
        "rest_us": facts.get("rest_us"),
        "trials": [trial_row(record) for record in records],
        "search": search_facts(folder, job, records),
        "warnings": [],
    }
    data["warnings"] += [caution] if (caution := dense_caution(data)) is not None else []
    data["best"] = _best(folder, data, dense_ms)
    assignment: Data = next(
        (r["assignment"] for r in records if data["best"] and r["number"] == data["best"]["number"]), {}
    )
    data["layers"] = layer_facts(facts, layer_rows(facts, assignment), records) if data["best"] else []
    data["status"] = status_of(folder, job, data)
    return data


def network_facts(folder: Path) -> dict[str, Any]:
    """What layers.json holds, with the saliency that each choice loses where the search wrote it."""
    facts, lost = read_object(folder / LAYERS), read_object(folder / "saliency.json")
    for layer in facts.get("layers") or ():
        known = section(lost, layer["name"])
        for choice in layer["choices"] if known else ():
            text = "dense" if choice["pattern"] == "dense" else f"{choice['pattern']}@{choice['sparsity']:g}"
            choice["lost"] = known.get(text)
    return facts


def trial_records(folder: Path) -> list[dict[str, Any]]:
    """The records of the finished trials, by number; those that cannot be read are left out."""
    records = (read_trial(folder, number) for number in sorted(trial_numbers(folder)))
    return [record for record in records if "number" in record]


def search_facts(folder: Path, job: Data, records: Sequence[Data]) -> dict[str, Any]:
    """The report's `search`: what was done, and what it cost."""
    states = [record.get("state") for record in records]
    cost = read_object(folder / "cost.json")
    own = cost.get("seconds_own")
    if own is None and records and all("own_seconds" in record for record in records):
        own = _total(records, "own_seconds")
    return {
        "strategy": section(job, "search").get("strategy"),
        "trials_done": states.count("complete"),
        "skipped": states.count("skipped"),
        "stopped": states.count("stopped"),
        "failed": states.count("failed"),
        "seconds": _total(records, "seconds"),
        "seconds_own": own,
        "epochs": _total(records, "epochs"),
        "epochs_final": _epochs_final(folder),
    }


def repeats_of(folder: Path) -> dict[str, Any] | None:
    """The winner made again with other seeds: validation accuracies, their mean and standard deviation."""
    made = read_object(folder / "best" / "record.json").get("repeats") or ()
    accuracies = [a for item in made if isinstance(item, Mapping) and is_number(a := item.get("accuracy_validation"))]
    if not made:
        return None
    return {
        "accuracies": accuracies,
        "mean": statistics.fmean(accuracies) if accuracies else None,
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "failed": len(made) - len(accuracies),
    }


def status_of(folder: Path, job: Data, data: Data) -> dict[str, Any]:
    """How far the run is: `searching` while a driver works on it, `stopped` before its end, or `searched`."""
    search, status = section(job, "search"), read_object(folder / STATUS)
    wanted, timeout_s = search.get("trials"), search.get("timeout_s")
    trials = data["trials"]
    over = is_number(wanted) and len(trials) >= wanted
    if is_number(timeout_s):
        over = over or _total(trials, "seconds") >= timeout_s
    feasible = best_feasible(trials, data)
    refined = bool(read_object(folder / "best" / "record.json")) or not feasible
    driven = is_driven(folder)
    return {
        "state": "searching" if driven else "searched" if over and refined else "stopped",
        "wanted": wanted,
        "running": sorted(section(status, "running")) if driven else [],
        "updated_at": status.get("updated_at"),
    }


def _best(folder: Path, data: Data, dense_ms: float | None) -> dict[str, Any] | None:
    ended = read_object(folder / "best" / "record.json")
    rows = {row["number"]: row for row in data["trials"]}
    faster = [
        row
        for row in data["trials"]
        if dense_ms is None or (is_number(row["latency_ms_predicted"]) and row["latency_ms_predicted"] < dense_ms)
    ]
    row = rows.get(ended.get("number")) or best_feasible(faster, data)
    if not row:
        return None
    is_final = row["number"] == ended.get("number")
    return {
        "number": row["number"],
        "accuracy_validation": ended["accuracy_validation"] if is_final else row["accuracy_validation"],
        "latency_ms_predicted": row["latency_ms_predicted"],
        "sparsity": row["sparsity"],
        "repeats": repeats_of(folder) if is_final else None,
    }


def _epochs_final(folder: Path) -> float | None:
    """Epochs of the finalists' long fine-tunings; repeats are not counted, for no file tells them."""
    ended = read_object(folder / "best" / "record.json")
    listed = ended.get("finalists") or ([ended] if ended else [])
    return _total([item for item in listed if isinstance(item, Mapping)], "epochs") if listed else None


def _total(items: Sequence[Data], key: str) -> float:
    return float(sum(item[key] for item in items if is_number(item.get(key))))
