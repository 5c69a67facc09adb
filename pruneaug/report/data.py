"""The report's data: what `report.json` holds, and the few figures that are derived from it.

Accuracies, losses and sparsities are fractions, `*_ms` milliseconds, `*_us` microseconds. Every figure may be None or
absent: a run that was not measured, or found nothing, is reported all the same. `layers[].latency_us` is the time of
all `calls` of the layer in one forward pass, so that the layers and `rest_us` add up to the predicted latency.
The keys are listed in docs/formats.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from pruneaug.errors import RunError

Data = Mapping[str, Any]

VERSION = 1
OWN_DENSE = "pruneaug-dense"
OWN_SPARSE = "pruneaug-sparse"
"""The runtimes that pruneaug compiled; `best_dense` may name the first."""


def read_report(path: Path) -> dict[str, Any]:
    """Read a `report.json`. Raises RunError if it is missing, broken or of a newer version."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(
            f"a finished run must have a readable {path.name}, but {path} is not ({error.strerror}); "
            "run `pruneaug run JOB` first"
        ) from error
    except ValueError as error:
        raise RunError(
            f"{path} must be JSON, but it is not ({error}); write it again with `pruneaug run JOB`"
        ) from error
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise RunError(f"{path} must have version {VERSION}, but has {version!r}; use the pruneaug that wrote it")
    assert isinstance(data, dict)
    return data


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a finite number: absent, None and NaN figures are shown as missing, never as zero."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def section(data: Data, key: str) -> Data:
    """The mapping under `key`; empty if it is absent or null."""
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def rows(data: Data, key: str) -> list[Data]:
    """The list of mappings under `key`; empty if it is absent or null."""
    value = data.get(key)
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list | tuple) else []


def difference(first: object, second: object) -> float | None:
    """first - second, or None if either is missing."""
    return first - second if is_number(first) and is_number(second) else None


def ratio(first: object, second: object) -> float | None:
    """first / second, or None if either is missing or `second` is not positive."""
    return first / second if is_number(first) and is_number(second) and second > 0 else None


def accuracy_loss(data: Data, split: str) -> float | None:
    """Accuracy of the dense network minus that of the best pruned one, on `split` ("validation" or "test")."""
    return difference(section(data, "dense").get(f"accuracy_{split}"), section(data, "best").get(f"accuracy_{split}"))


def max_accuracy_loss(data: Data) -> float | None:
    """The largest loss that is allowed; None where not the loss but the latency has a limit."""
    constraint = section(data, "constraint")
    value = constraint.get("max_accuracy_loss")
    return value if is_number(value) and constraint.get("objective") != "accuracy" else None


def expected_recovery(data: Data) -> float:
    """The loss that trials may have beyond the largest allowed one, before the final fine-tuning."""
    value = section(data, "constraint").get("expected_recovery")
    return value if is_number(value) and max_accuracy_loss(data) is not None else 0.0


def max_latency_ms(data: Data) -> float | None:
    """The largest latency that is allowed; None where it has no limit."""
    value = section(data, "constraint").get("max_latency_ms")
    return value if is_number(value) else None


def best_baseline(data: Data) -> Data:
    """The fastest dense runtime, the one that the speed-up is measured against; empty if none was measured.

    It is one of `baselines`, or the dense network that pruneaug compiled itself.
    """
    name = data.get("best_dense")
    for row in [*rows(data, "baselines"), *own_runtimes(data)]:
        if name is not None and row["runtime"] == name:
            return row
    return {}


def own_runtimes(data: Data) -> list[Data]:
    """The networks that pruneaug compiled and measured, as rows like those of `baselines`."""
    named = (("dense", OWN_DENSE), ("best", OWN_SPARSE))
    return [
        {
            "runtime": name,
            "latency_ms": figures["latency_ms_measured"],
            "p10": figures.get("latency_ms_p10"),
            "p90": figures.get("latency_ms_p90"),
            "predicted_ms": figures.get("latency_ms_predicted"),
        }
        for key, name in named
        if is_number((figures := section(data, key)).get("latency_ms_measured"))
    ]


def chosen_trial(data: Data) -> Data:
    """The trial that the search came to: the one that `best` names, or else the best feasible one; empty if none is."""
    number = section(data, "best").get("number")
    named = [trial for trial in rows(data, "trials") if number is not None and trial.get("number") == number]
    return named[0] if named else best_feasible(rows(data, "trials"), data)


def best_feasible(trials: Iterable[Data], data: Data) -> Data:
    """The feasible trial of the lowest predicted latency, or of the least loss where that is the objective."""
    feasible = [t for t in trials if t.get("feasible") and is_number(t.get("latency_ms_predicted"))]

    def latency_then_loss(trial: Data) -> tuple[float, float]:
        return trial["latency_ms_predicted"], trial.get("accuracy_loss") or 0.0

    if section(data, "constraint").get("objective") == "accuracy":
        return min(feasible, key=lambda trial: latency_then_loss(trial)[::-1], default={})
    return min(feasible, key=latency_then_loss, default={})


def closest_trial(data: Data) -> Data:
    """Where nothing was feasible: the trained trial that lost least accuracy; empty if none finished."""
    judged = [t for t in rows(data, "trials") if is_number(t.get("accuracy_loss"))]
    return min(judged, key=lambda t: t["accuracy_loss"], default={})
