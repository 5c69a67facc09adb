"""The verb `bench kernels`: layers by our kernels and by dense libraries, beside the CPU's peak; no table changes."""

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
from pruneaug.latency.table import RUNTIME_LIBRARY, LatencyTable
from pruneaug.network.ops import Op, parse_op
from pruneaug.platforms import Platform, detect
from pruneaug.profiler.peak import measure_peak
from pruneaug.profiler.plan import DENSE_LIBRARIES, cell_of, wanted
from pruneaug.profiler.run import DEFAULT_MEASURER, profile_ops
from pruneaug.registry import did_you_mean

FLOAT32 = "float32"
LOWP_MEASURER = "pruneaug.profiler.lowp_measure:LowpMeasurer"


def bench_kernels(
    ops: Sequence[Op | str],
    *,
    patterns: Sequence[str] = ("block:8x1",),
    sparsities: Sequence[float] = (0.9,),
    dtype: str = FLOAT32,
    threads: int | None = None,
    measurer: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every op dense by us and by other libraries, and by our kernel of every pattern and sparsity.

    `ops` are ops or their keys; `threads` None is one per core. `dtype` is float32, where the other library is PyTorch,
    or bfloat16 or int8, in which every library computes, from and to activations that have it already. A pattern larger
    than an op's weight matrix, and an op that has no kernel in `dtype`, are left out.

    Returns what `pruneaug bench kernels --json` prints: `platform`, `threads`, `peak_gflops`, `kernels`, `skipped`,
    `warnings`. GFLOP/s count the multiply-adds of the weights that are kept, two operations each.
    Raises InputError for a wrong op, pattern, sparsity or dtype, or for one that this CPU has no instructions for,
    MeasurementError if this machine cannot measure.
    """
    checked = list(dict.fromkeys(parse_op(op) if isinstance(op, str) else op for op in ops))
    blocks = check_patterns(patterns)
    for sparsity in sparsities:
        check_sparsity(sparsity)
    if not checked:
        raise InputError("a benchmark of kernels needs an op, but got none; name one, such as linear-t128-i768-o768")
    _check_dtype(dtype)
    platform = detect(threads, dtype=dtype)
    libraries, absent = _libraries(platform)
    reasons = _unsupported(checked, platform)
    left_out = {op: reason for op, reason in reasons.items() if reason is not None}
    checked = [op for op in checked if op not in left_out]
    peak = measure_peak(platform)
    measurer = measurer or (DEFAULT_MEASURER if dtype == FLOAT32 else LOWP_MEASURER)
    records, warnings = _measured(checked, blocks, sparsities, platform, measurer, progress, libraries)
    by_cell = {cell_of(record): record for record in records}
    return {
        "platform": platform.name,
        "threads": platform.threads,
        "peak_gflops": peak,
        "kernels": [_as_json(by_cell[cell], peak) for cell in wanted(checked, blocks, sparsities, libraries)],
        "skipped": [
            {"op": op.key, "pattern": pattern, "reason": f"its weight matrix is only {matrix_size(op)}"}
            for op in checked
            for pattern in blocks
            if not fits(op, pattern)
        ]
        + [{"op": op.key, "pattern": "all", "reason": reason} for op, reason in left_out.items()],
        "warnings": [*absent, *warnings],
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
    libraries: Sequence[str] = DENSE_LIBRARIES,
) -> tuple[list[LatencyRecord], tuple[str, ...]]:
    with tempfile.TemporaryDirectory(prefix="pruneaug-") as folder:
        store = LatencyStore(Path(folder) / platform.name)
        result = profile_ops(
            ops, patterns, sparsities, platform, store,
            timeout_s=TIMEOUT_S, measurer=measurer, libraries=libraries, progress=stage(progress, "Kernels"),
        )  # fmt: skip
        return list(store.load()), result.warnings


# What is in reduced precision loads the compiler, which replaces Python's excepthook: only who asks for it imports it.


def _unsupported(ops: Sequence[Op], platform: Platform) -> dict[Op, str | None]:
    """Why an op has no kernel in this dtype; None where it has one."""
    if platform.dtype == FLOAT32:
        return {}
    from pruneaug.kernels.lowp.planes import unsupported

    return {op: unsupported(op, platform.vector_lanes) for op in ops}


def _check_dtype(dtype: str) -> None:
    if dtype == FLOAT32:
        return
    from pruneaug.kernels.lowp.formats import FORMATS

    if dtype not in FORMATS:
        raise InputError(
            f"`dtype` must be one of {FLOAT32}, {', '.join(FORMATS)}, but got {dtype!r}"
            f"{did_you_mean(dtype, [FLOAT32, *FORMATS])}"
        )


def _libraries(platform: Platform) -> tuple[tuple[str, ...], list[str]]:
    """The libraries that are timed dense, and a warning for each that is not installed."""
    if platform.dtype == FLOAT32:
        return DENSE_LIBRARIES, []
    from pruneaug.kernels.lowp.formats import format_for
    from pruneaug.profiler.lowp_peers import PEERS, installed

    form = format_for(platform.dtype, platform.isa)
    here = installed(form)
    absent = [name for name in PEERS[form] if name not in here]
    warnings = [f"{name} is not compared: it is not installed; pip install 'pruneaug[peers]'" for name in absent]
    return (RUNTIME_LIBRARY, *here), warnings


def _as_json(record: LatencyRecord, peak: float) -> dict[str, Any]:
    """The record, and what it makes of the peak; null where it has no time."""
    kept = 2 * record.op.macs * (1 - record.sparsity)
    gflops = None if record.error is not None else kept / record.latency_us / 1e3
    share = None if gflops is None else gflops / peak
    return {**json.loads(record_to_json(record)), "gflops": gflops, "peak_share": share}
