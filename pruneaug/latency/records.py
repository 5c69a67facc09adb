"""Latency records: one measured time, one JSON line."""

from __future__ import annotations

from dataclasses import dataclass

from pruneaug.network.ops import Op

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """One measured time of (op, pattern, sparsity) by one kernel library; `error` says why there is none.

    `batch` and every size are part of `op`. `max_relative_error` is norm(result - reference) / norm(reference) of the
    kernel that was timed, against float64.
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
