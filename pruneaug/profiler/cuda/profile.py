"""Profiling a GPU: its kernels compiled, then the cells that have no time yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from pruneaug.errors import DeviceError
from pruneaug.latency.store import LatencyStore
from pruneaug.network.ops import Op
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.cuda.cells import CellWorker
from pruneaug.profiler.cuda.process import GpuProcess
from pruneaug.profiler.cuda.records import Journal, warnings_of
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

    `compiling` and `progress` are told what is compiled and measured. A GPU beside the first that cannot be reached, or
    is another one, takes no part. Raises what `profile_ops` raises, and before that what `CellWorker.prepare` raises.
    """
    ops = tuple(ops)
    cells = plan(ops, patterns, sparsities, store, dense_only=dense_only)
    journal = Journal(store.folder / JOURNAL)
    workers = [CellWorker(process, journal) for process in processes[: max(1, len({cell.op for cell in cells}))]]
    first, *others = workers
    absent: list[str] = []
    if cells:
        first.prepare(cells, platform, compiling)
        for worker in others:
            try:
                worker.join(first, platform)
            except DeviceError as error:
                workers.remove(worker)
                absent.append(f"one of {len(processes)} GPUs took no part: {error}")
    result = profile_ops(
        ops, patterns, sparsities, platform, store, measurer=workers, dense_only=dense_only, observed=tuple,
        progress=progress,
    )  # fmt: skip
    records = [record for worker in workers for record in worker.records]
    return replace(result, warnings=(*result.warnings, *first.warnings, *absent, *warnings_of(records)))
