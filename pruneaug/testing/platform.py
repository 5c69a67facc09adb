"""A platform that is computed instead of measured: the whole flow runs in seconds, with the same times each time."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneaug.latency.records import LatencyRecord, error_record
from pruneaug.latency.table import LatencyTable
from pruneaug.network.ops import Op
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.plan import Cell, wanted
from pruneaug.sparsity.patterns import NM, parse_pattern

ANALYTIC_PLATFORM = Platform(
    name="analytic",
    cpu="analytic",
    arch="x86_64",
    isa=("avx2", "fma"),
    cores=2,
    threads=2,
    caches=(("L1d", 32768), ("L2", 1048576)),
)
ANALYTIC_MEASURER = "pruneaug.testing.platform:AnalyticMeasurer"
OPTIONS_VARIABLE = "PRUNEAUG_ANALYTIC"
"""Environment variable with AnalyticMeasurer's options as JSON, for tests that cannot pass them."""

_OVERHEAD_US = 2.0
_CYCLES_PER_US = 2500.0
_MEASURED_AT = "2026-01-01T00:00:00+00:00"


def analytic_latency_us(cell: Cell, platform: Platform) -> float:
    """Overhead plus multiplications at the pattern's rate: blocks of 8 weights or more, and N:M, run at full rate."""
    block = parse_pattern(cell.pattern)
    peak = platform.threads * 2 * platform.vector_lanes * _CYCLES_PER_US  # multiply-accumulates per us
    if block is None:
        efficiency = 0.8 if cell.library == "tvm" else 0.4
    else:
        weights = 8 if isinstance(block, NM) else block.rows * block.cols
        efficiency = 0.75 * math.sqrt(min(1.0, weights / 8))
    return _OVERHEAD_US + cell.op.macs * (1 - cell.sparsity) / (peak * efficiency)


def analytic_record(cell: Cell, platform: Platform) -> LatencyRecord:
    """The record of a computed time, with a spread of a few percent."""
    latency_us = analytic_latency_us(cell, platform)
    return LatencyRecord(
        op=cell.op,
        pattern=cell.pattern,
        sparsity=cell.sparsity,
        library=cell.library,
        variant="",
        dtype=platform.dtype,
        threads=platform.threads,
        latency_us=latency_us,
        p10_us=0.99 * latency_us,
        p90_us=1.03 * latency_us,
        runs=1,
        max_relative_error=0.0,
        measured_at=_MEASURED_AT,
    )


def analytic_table(
    ops: Iterable[Op], patterns: Sequence[str], sparsities: Sequence[float], platform: Platform = ANALYTIC_PLATFORM
) -> LatencyTable:
    """The latency table of a computed platform."""
    return LatencyTable(analytic_record(cell, platform) for cell in wanted(ops, patterns, sparsities))


class AnalyticMeasurer:
    """A measurer that computes, and that fails where it is told to.

    `faults` maps a cell, as "block:8x1@0.9" or as the number in which it comes ("1" is the first), to "crash", "hang",
    "raise", "error" (a record with an error) or "skip" (no record). `log` is a file that gets one line per cell begun:
    with it numbers count over all processes, so that a fault by number happens once.
    """

    def __init__(
        self,
        platform: Platform,
        *,
        faults: Mapping[str, str] | None = None,
        log: str | None = None,
        delay_s: float = 0.0,
    ) -> None:
        options: dict[str, Any] = {"faults": faults or {}, "log": log, "delay_s": delay_s}
        options |= json.loads(os.environ.get(OPTIONS_VARIABLE, "{}"))
        self._platform = platform
        self._faults: Mapping[str, str] = options["faults"]
        self._log = None if options["log"] is None else Path(options["log"])
        self._delay_s = float(options["delay_s"])
        self._begun = 0

    def measure(self, op: Op, cells: Sequence[Cell]) -> Iterator[LatencyRecord]:
        """One record for each cell, unless a fault says otherwise."""
        for cell in cells:
            number = self._begin(cell)
            time.sleep(self._delay_s)
            match self._faults.get(str(number), self._faults.get(f"{cell.pattern}@{cell.sparsity:g}")):
                case "crash":
                    os.abort()
                case "hang":
                    time.sleep(3600)
                case "raise":
                    raise RuntimeError("told to raise")
                case "error":
                    yield _refused(cell, self._platform)
                case "skip":
                    pass
                case _:
                    yield analytic_record(cell, self._platform)

    def _begin(self, cell: Cell) -> int:
        """Count and log the cell; returns its number."""
        self._begun += 1
        if self._log is None:
            return self._begun
        with self._log.open("a") as file:
            file.write(f"{cell.op.key} {cell.pattern}@{cell.sparsity:g} {cell.library}\n")
        return len(self._log.read_text().splitlines())


def _refused(cell: Cell, platform: Platform) -> LatencyRecord:
    return error_record(
        cell.op,
        cell.pattern,
        cell.sparsity,
        cell.library,
        dtype=platform.dtype,
        threads=platform.threads,
        measured_at=_MEASURED_AT,
        error="told to fail",
    )
