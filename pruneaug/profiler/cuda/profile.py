"""Profiling a GPU: its kernels compiled, then the cells that have no time yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from pruneaug.latency.store import LatencyStore
from pruneaug.network.ops import Op
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.cuda.cells import CellWorker
from pruneaug.profiler.cuda.process import GpuProcess
from pruneaug.profiler.cuda.records import Journal, clock_warnings
from pruneaug.profiler.plan import plan
from pruneaug.profiler.run import ProfileResult, Progress, profile_ops

JOURNAL = "gpu/variants.jsonl"
"""Beside a latency table: the time of each kernel that competed for a cell, and the GPU's clocks."""


def profile_gpu(
    ops: Iterable[Op],
    patterns: Sequence[str],
    sparsities: Sequence[float],
    platform: Platform,
    store: LatencyStore,
    processes: Sequence[GpuProcess],
    *,
    dense_only: Collection[Op] = (),
    compiling: Progress | None = None,
    progress: Progress | None = None,
) -> ProfileResult:
    """`profile_ops` on the GPUs of these processes, which share the ops; no more are started than there is work for.

    `compiling` and `progress` are told what is compiled and measured. Raises what `profile_ops` raises, and before that
    what `CellWorker.prepare` raises.
    """
    ops = tuple(ops)
    cells = plan(ops, patterns, sparsities, store, dense_only=dense_only)
    journal = Journal(store.folder / JOURNAL)
    workers = [CellWorker(process, journal) for process in processes[: max(1, len({cell.op for cell in cells}))]]
    first, *others = workers
    if cells:
        first.prepare(cells, platform, compiling)
        for worker in others:
            worker.join(first, platform)
    result = profile_ops(
        ops, patterns, sparsities, platform, store, measurer=workers, dense_only=dense_only, observed=tuple,
        progress=progress,
    )  # fmt: skip
    records = [record for worker in workers for record in worker.records]
    return replace(result, warnings=(*result.warnings, *first.warnings, *clock_warnings(records)))
