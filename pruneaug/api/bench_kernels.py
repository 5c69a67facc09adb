"""The verb `bench kernels`: layers by our kernels and by dense libraries, beside the CPU's peak; no table changes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pruneaug.api.bench_choices import check_patterns, check_sparsity, fits, matrix_size
from pruneaug.api.job import Progress, stage
from pruneaug.errors import InputError
from pruneaug.kernels.lowp.formats import format_for
from pruneaug.latency.break_even import break_even
from pruneaug.latency.records import LatencyRecord, record_to_json
from pruneaug.latency.store import LatencyStore
from pruneaug.latency.table import RUNTIME_LIBRARY, LatencyTable
from pruneaug.network.ops import Op, parse_op
from pruneaug.platforms import Platform, detect
from pruneaug.profiler.op_peers import PEERS, absent_peer, check_peers, peer_versions
from pruneaug.profiler.peak import measure_peak
from pruneaug.profiler.plan import DENSE_LIBRARIES, cell_of, wanted
from pruneaug.profiler.run import DEFAULT_MEASURER, profile_ops
from pruneaug.registry import did_you_mean

FLOAT32 = "float32"
LIBRARIES = ("torch",)


def bench_kernels(
    ops: Sequence[Op | str],
    *,
    patterns: Sequence[str] = ("block:8x1",),
    sparsities: Sequence[float] = (0.9,),
    dtype: str = FLOAT32,
    threads: int | None = None,
    against: Sequence[str] = LIBRARIES,
    measurer: str = DEFAULT_MEASURER,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every op dense by us and by the libraries in `against`, and by our kernel of every pattern and sparsity.

    `ops` are ops or their keys; `threads` None is one per core. `dtype` is float32, bfloat16 or int8, from and to
    activations that have it already. A pattern larger than an op's weight matrix, and an op that has no kernel in
    `dtype`, are left out, and so is a library that is not installed.

    Returns what `pruneaug bench kernels --json` prints: `platform`, `threads`, `versions`, `peak_gflops`, `kernels`,
    `break_even`, `skipped`, `warnings`. GFLOP/s count the multiply-adds of the weights that are kept, two operations
    each. Raises InputError for a wrong op, pattern, sparsity, dtype or library, or for a dtype that this CPU has no
    instructions for, MeasurementError if this machine cannot measure.
    """
    checked = list(dict.fromkeys(parse_op(op) if isinstance(op, str) else op for op in ops))
    blocks = check_patterns(patterns)
    for sparsity in sparsities:
        check_sparsity(sparsity)
    if not checked:
        raise InputError(
            "a benchmark of kernels needs an op, but got none; name one in `ops`, such as linear-t128-i768-o768"
        )
    _check_dtype(dtype)
    check_peers(against, dtype)
    absent = {name: why for name in against if (why := absent_peer(name, dtype))}
    libraries = [RUNTIME_LIBRARY, *(name for name in dict.fromkeys(against) if name not in absent)]
    platform = detect(threads, dtype=dtype)
    if dtype != FLOAT32:
        format_for(dtype, platform.isa)
    reasons = _unsupported(checked, platform)
    left_out = {op: reason for op, reason in reasons.items() if reason is not None}
    checked = [op for op in checked if op not in left_out]
    peak = measure_peak(platform)
    records, warnings = _measured(checked, blocks, sparsities, platform, measurer, progress, libraries)
    by_cell = {cell_of(record): record for record in records}
    return {
        "platform": platform.name,
        "threads": platform.threads,
        "versions": dict(platform.versions) | peer_versions(libraries[1:], dtype),
        "peak_gflops": peak,
        "kernels": [_as_json(by_cell[cell], peak) for cell in wanted(checked, blocks, sparsities, libraries)],
        "break_even": {pattern: asdict(found) for pattern, found in break_even(records).items()},
        "skipped": [
            {"op": op.key, "pattern": pattern, "reason": f"its weight matrix is only {matrix_size(op)}"}
            for op in checked
            for pattern in blocks
            if not fits(op, pattern)
        ]
        + [{"op": op.key, "pattern": "all", "reason": reason} for op, reason in left_out.items()],
        "warnings": [*(f"{name} is not compared: {why}" for name, why in absent.items()), *warnings],
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
            measurer=measurer, libraries=libraries, progress=stage(progress, "Kernels"),
        )  # fmt: skip
        return list(store.load()), result.warnings


def _unsupported(ops: Sequence[Op], platform: Platform) -> dict[Op, str | None]:
    """Why an op has no kernel in this dtype; None where it has one."""
    if platform.dtype == FLOAT32:
        return {}
    # This loads the compiler, which replaces Python's excepthook: only who asks for reduced precision imports it.
    from pruneaug.kernels.lowp.planes import unsupported

    return {op: unsupported(op, platform.vector_lanes) for op in ops}


def _check_dtype(dtype: str) -> None:
    if dtype not in PEERS:
        raise InputError(f"`dtype` must be one of {', '.join(PEERS)}, but got {dtype!r}{did_you_mean(dtype, PEERS)}")


def _as_json(record: LatencyRecord, peak: float) -> dict[str, Any]:
    """The record, and what it makes of the peak; null where it has no time."""
    kept = 2 * record.op.macs * (1 - record.sparsity)
    gflops = None if record.error is not None else kept / record.latency_us / 1e3
    share = None if gflops is None else gflops / peak
    return {**json.loads(record_to_json(record)), "gflops": gflops, "peak_share": share}
