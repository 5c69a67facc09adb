"""Latency records: one measured time, one JSON line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pruneaug.errors import InputError, LatencyTableError
from pruneaug.network.ops import Op, parse_op
from pruneaug.sparsity.patterns import parse_pattern

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """One measured time of (op, pattern, sparsity) by one kernel library; `error` says why there is none.

    `batch` and every size are part of `op`. `max_relative_error` is norm(result - reference) / norm(reference) of the
    kernel that was timed, against float64. A record with an error holds NaN where nothing was measured.
    """

    op: Op
    pattern: str  # "dense" or "block:8x1"
    sparsity: float
    library: str  # "tvm" or "torch"
    variant: str  # the fastest kernel variant, as its library names it; "" if there is only one
    dtype: str
    threads: int
    latency_us: float
    p10_us: float
    p90_us: float
    runs: int
    max_relative_error: float
    measured_at: str  # ISO 8601, UTC
    error: str | None = None
    version: int = SCHEMA_VERSION


def error_record(
    op: Op, pattern: str, sparsity: float, library: str, *, dtype: str, threads: int, measured_at: str, error: str
) -> LatencyRecord:
    """The record of a cell that has no time, and why."""
    return LatencyRecord(
        op,
        pattern,
        sparsity,
        library,
        "",
        dtype,
        threads,
        math.nan,
        math.nan,
        math.nan,
        0,
        math.nan,
        measured_at,
        error,
    )


def record_to_json(record: LatencyRecord) -> str:
    """The record as one line of JSON, the same for equal records."""
    values: dict[str, Any] = {"version": record.version, "op": record.op.key}
    values |= {field: getattr(record, field) for field in record.__slots__ if field not in ("version", "op")}
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
    return json.dumps(finite, ensure_ascii=False)


def record_from_json(line: str) -> LatencyRecord:
    """Read one line of any version that pruneaug ever wrote.

    Raises LatencyTableError that names the rule and the value.
    """
    try:
        values = json.loads(line)
    except ValueError as error:
        raise LatencyTableError(f"a latency record must be one JSON object, but {error}") from error
    if not isinstance(values, dict):
        raise LatencyTableError(f"a latency record must be one JSON object, but got {type(values).__name__}")
    version = values.get("version")
    reader = _READERS.get(version) if isinstance(version, int) else None
    if reader is None:
        raise LatencyTableError(
            f"a latency record's version must be one of {', '.join(map(str, _READERS))}, but got {version!r}; "
            "update pruneaug if a newer one wrote it"
        )
    try:
        return reader(values)
    except KeyError as error:
        raise LatencyTableError(f"a latency record must have {error}, but it is missing") from error
    except (InputError, TypeError, ValueError) as error:
        raise LatencyTableError(f"a latency record holds a wrong value: {error}") from error


def _read_version_1(values: Mapping[str, Any]) -> LatencyRecord:
    if unknown := values.keys() - set(LatencyRecord.__slots__):
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
    error = None if values.get("error") is None else str(values["error"])
    pattern = parse_pattern(values["pattern"])
    record = LatencyRecord(
        op=parse_op(values["op"]),
        pattern="dense" if pattern is None else str(pattern),
        sparsity=float(values["sparsity"]),
        library=str(values["library"]),
        variant=str(values["variant"]),
        dtype=str(values["dtype"]),
        threads=int(values["threads"]),
        latency_us=_time(values["latency_us"]),
        p10_us=_time(values["p10_us"]),
        p90_us=_time(values["p90_us"]),
        runs=int(values["runs"]),
        max_relative_error=_time(values["max_relative_error"]),
        measured_at=str(values["measured_at"]),
        error=error,
    )
    if not 0 <= record.sparsity <= 1 or (pattern is None and record.sparsity != 0):
        raise ValueError(
            f"sparsity must lie in [0, 1], and be 0 for dense, but got {record.sparsity} for {record.pattern}"
        )
    if error is None and not record.latency_us > 0:
        raise ValueError(f"latency_us must be above 0 where there is no error, but got {values['latency_us']}")
    if datetime.fromisoformat(record.measured_at).tzinfo is None:
        raise ValueError(f"measured_at must say its time zone, but got {record.measured_at!r}")
    return record


def _time(value: Any) -> float:
    return math.nan if value is None else float(value)


_READERS: dict[int, Callable[[Mapping[str, Any]], LatencyRecord]] = {1: _read_version_1}
