"""The verb `bench kernels`: layers by our kernels and by PyTorch, beside the CPU's peak; no latency table changes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruneaug.api.bench_choices import check_patterns, check_sparsity, fits, matrix_size
from pruneaug.api.job import Progress, stage
from pruneaug.api.profiling import TIMEOUT_S
from pruneaug.errors import InputError
from pruneaug.latency.records import LatencyRecord, record_to_json
from pruneaug.latency.store import LatencyStore
from pruneaug.latency.table import LatencyTable
from pruneaug.network.ops import Op, parse_op
from pruneaug.platforms import Platform, detect
from pruneaug.profiler.peak import measure_peak
from pruneaug.profiler.plan import cell_of, wanted
from pruneaug.profiler.run import DEFAULT_MEASURER, profile_ops


def bench_kernels(
    ops: Sequence[Op | str],
    *,
    patterns: Sequence[str] = ("block:8x1",),
    sparsities: Sequence[float] = (0.9,),
    threads: int | None = None,
    measurer: str = DEFAULT_MEASURER,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every op dense by us and by PyTorch, and by our kernel of every pattern and sparsity.

    `ops` are ops or their keys; `threads` None is one per core. A pattern larger than an op's weight matrix is left
    out. Returns what `pruneaug bench kernels --json` prints: `platform`, `threads`, `peak_gflops`, `kernels`,
    `skipped`, `warnings`. GFLOP/s count the multiply-adds of the weights that are kept, two operations each.
    Raises InputError for a wrong op, pattern or sparsity, MeasurementError if this machine cannot measure.
    """
    checked = list(dict.fromkeys(parse_op(op) if isinstance(op, str) else op for op in ops))
    blocks = check_patterns(patterns)
    for sparsity in sparsities:
        check_sparsity(sparsity)
    if not checked:
        raise InputError("a benchmark of kernels needs an op, but got none; name one, such as linear-t128-i768-o768")
    platform = detect(threads)
    peak = measure_peak(platform)
    records, warnings = _measured(checked, blocks, sparsities, platform, measurer, progress)
    by_cell = {cell_of(record): record for record in records}
    return {
        "platform": platform.name,
        "threads": platform.threads,
        "peak_gflops": peak,
        "kernels": [_as_json(by_cell[cell], peak) for cell in wanted(checked, blocks, sparsities)],
        "skipped": [
            {"op": op.key, "pattern": pattern, "reason": f"its weight matrix is only {matrix_size(op)}"}
            for op in checked
            for pattern in blocks
            if not fits(op, pattern)
        ],
        "warnings": list(warnings),
    }


def measure_ops(
    ops: Sequence[Op],
    patterns: Sequence[str],
    sparsities: Sequence[float],
    platform: Platform,
    progress: Progress | None,
) -> LatencyTable:
    """The times of these ops, and the variants that they are of, in a table that is not kept."""
    return LatencyTable(_measured(ops, patterns, sparsities, platform, DEFAULT_MEASURER, progress)[0])


def _measured(
    ops: Sequence[Op],
    patterns: Sequence[str],
    sparsities: Sequence[float],
    platform: Platform,
    measurer: str,
    progress: Progress | None,
) -> tuple[list[LatencyRecord], tuple[str, ...]]:
    with tempfile.TemporaryDirectory(prefix="pruneaug-") as folder:
        store = LatencyStore(Path(folder) / platform.name)
        result = profile_ops(
            ops, patterns, sparsities, platform, store,
            timeout_s=TIMEOUT_S, measurer=measurer, progress=stage(progress, "Kernels"),
        )  # fmt: skip
        return list(store.load()), result.warnings


def _as_json(record: LatencyRecord, peak: float) -> dict[str, Any]:
    """The record, and what it makes of the peak; null where it has no time."""
    kept = 2 * record.op.macs * (1 - record.sparsity)
    gflops = None if record.error is not None else kept / record.latency_us / 1e3
    share = None if gflops is None else gflops / peak
    return {**json.loads(record_to_json(record)), "gflops": gflops, "peak_share": share}
