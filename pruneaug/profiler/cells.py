"""From the times of a cell's variants to its record, wherever they were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pruneaug.errors import MeasurementError
from pruneaug.latency.records import LatencyRecord, error_record
from pruneaug.network.ops import Op
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.plan import Cell
from pruneaug.sparsity.patterns import Pattern

MOST_VARIANTS = 3
_LARGE_MATRIX = 50_000  # weights; masks of larger ones vary less than times do

Times = npt.NDArray[np.float64]
Tried = TypeVar("Tried")


def mask_seeds(op: Op, block: Pattern | None, seeds: Sequence[int]) -> Sequence[int]:
    """Those of the seeds whose masks are measured: the first alone where masks make no difference."""
    return seeds if block is not None and math.prod(op.matrix_shape) <= _LARGE_MATRIX else seeds[:1]


def to_try(likeliest: list[Tried], last: Tried | None) -> list[Tried]:
    """What is measured: the likeliest, or beside the first of them the fastest at the pattern's last sparsity."""
    return likeliest if last is None else list(dict.fromkeys([last, likeliest[0]]))


def fastest(times: Times) -> tuple[int, Times]:
    """Which variant is the fastest, and its times [runs of all masks], from those of all [masks, variants, runs].

    The first half of the runs chooses the variant, the second half times it: a lucky reading earns nothing.
    """
    half = times.shape[-1] // 2
    best = int(np.median(times[:, :, :half], axis=2).mean(axis=0).argmin())
    return best, times[:, best, half:].reshape(-1)


def checked(error: float, largest: float, cell: Cell, dtype: str, computed_by: str) -> float:
    """The relative error. Raises MeasurementError if it is too large."""
    if not error <= largest:
        raise MeasurementError(
            f"a relative error in {dtype} must be at most {largest:g}, "
            f"but {computed_by} of {cell} has {error:g}; please report it"
        )
    return error


def timed(cell: Cell, platform: Platform, variant: str, times_us: Times, max_relative_error: float) -> LatencyRecord:
    """The record of a cell that was measured now."""
    p10, median, p90 = np.percentile(times_us, (10, 50, 90))
    return LatencyRecord(
        cell.op, cell.pattern, cell.sparsity, cell.library, variant, platform.dtype, platform.threads,
        latency_us=float(median), p10_us=float(p10), p90_us=float(p90), runs=times_us.size,
        max_relative_error=max_relative_error, measured_at=_now(),
    )  # fmt: skip


def failed(cell: Cell, platform: Platform, error: str) -> LatencyRecord:
    """The record of a cell that has failed now."""
    return error_record(
        cell.op, cell.pattern, cell.sparsity, cell.library,
        dtype=platform.dtype, threads=platform.threads, measured_at=_now(), error=error,
    )  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
