"""Profiling: measure every cell that has no time yet, and keep each record at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from pruneaug.errors import RunError
from pruneaug.files import storage_errors
from pruneaug.latency.records import LatencyRecord
from pruneaug.latency.store import LatencyStore
from pruneaug.network.ops import Op
from pruneaug.platforms.load import busy
from pruneaug.platforms.platform import Platform
from pruneaug.platforms.stored import claim_folder
from pruneaug.profiler.cells import failed
from pruneaug.profiler.plan import DENSE_LIBRARIES, Task, cell_of, plan, wanted
from pruneaug.profiler.process import TaskFailure, WorkerProcess
from pruneaug.profiler.sharing import share

DEFAULT_MEASURER = "pruneaug.profiler.measure:Measurer"
REMOTE_MEASURER = "pruneaug.profiler.remote.measure:RemoteMeasurer"

TIMEOUT_S = 120.0  # of silence: one cell takes well under a second, a large layer's reference some seconds

Progress = Callable[[int, int, str], None]
"""(cells done, cells in all, what was measured last)."""


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """What one profile did: cells measured now, cells that had a time already, records with an error."""

    measured: int
    reused: int
    failed: tuple[LatencyRecord, ...]
    warnings: tuple[str, ...]


class TaskWorker(Protocol):
    """Measures tasks, in processes that these may break."""

    def measure(self, task: Task) -> Iterator[LatencyRecord]:
        """The task's records as they come, at most one for each cell. Raises TaskFailure if the next task may work."""
        ...


def profile_ops(
    ops: Iterable[Op],
    patterns: Sequence[str],
    sparsities: Sequence[float],
    platform: Platform,
    store: LatencyStore,
    *,
    measurer: str | Sequence[TaskWorker] = DEFAULT_MEASURER,
    timeout_s: float = TIMEOUT_S,
    libraries: Sequence[str] = DENSE_LIBRARIES,
    dense_only: Collection[Op] = (),
    options: Mapping[str, Any] | None = None,
    workers: int = 1,
    observed: Callable[[], tuple[str, ...]] | None = None,
    progress: Progress | None = None,
) -> ProfileResult:
    """Measure the cells of these ops that the store has no time for.

    `measurer` is the `package.module:attr` of a `Measurer`, for which processes are started, or those that measure
    tasks in their own way and share them. `timeout_s` is the longest silence of such a process before it counts as
    hung, and `options` are the `Measurer`'s keyword arguments. `libraries` are those that are timed dense, and the ops
    of `dense_only` are timed with no pattern. `workers` measuring processes share the ops, which needs a device for
    each; `observed` tells why times may be wrong, if it is not this machine's CPU that measures.
    A cell that crashes, hangs or fails becomes a record with an error and is tried again by the next profile. Stopping
    at any moment, however rudely, loses no record that was reported.

    Raises LatencyTableError if the store is another platform's, RunError if another process profiles it,
    MeasurementError if the measuring process does not start, DeviceError if a remote device is lost, StorageError if a
    record cannot be written.
    """
    ops = tuple(ops)
    warnings = claim_folder(store.folder, platform)
    with sole_profile(store.folder), ExitStack() as stack:
        cells = plan(ops, patterns, sparsities, store, libraries, dense_only)
        if cells:
            warnings += (observed or busy)()
        failed: list[LatencyRecord] = []
        tasks = [Task(op, tuple(group), platform, options or {}) for op, group in groupby(cells, lambda cell: cell.op)]
        started: list[TaskWorker] = (
            list(measurer)
            if not isinstance(measurer, str)
            else [
                stack.enter_context(WorkerProcess(platform, measurer, timeout_s))
                for _ in range(max(1, min(workers, len(tasks))))
            ]
        )
        records = share(tasks, [partial(_measure, worker) for worker in started])
        for done, record in enumerate(records, 1):
            store.append(record)
            if record.error is not None:
                failed.append(record)
            if progress is not None:
                progress(done, len(cells), f"{record.op.key} {record.pattern}@{record.sparsity:g} {record.library}")
    reused = len(wanted(ops, patterns, sparsities, libraries, dense_only)) - len(cells)
    return ProfileResult(len(cells) - len(failed), reused, tuple(failed), warnings)


def _measure(worker: TaskWorker, task: Task) -> Iterator[LatencyRecord]:
    """Exactly one record for each cell of the task.

    After a failure each cell without a record is tried alone: a measurer may work on several cells at once, so only
    then is it known which of them fails.
    """
    left = dict.fromkeys(task.cells)
    try:
        for record in worker.measure(task):
            if cell_of(record) in left:
                del left[cell_of(record)]
                yield record
    except TaskFailure as failure:
        if len(task.cells) == 1:
            yield from (failed(cell, task.platform, str(failure)) for cell in left)
        else:
            for cell in left:
                yield from _measure(worker, replace(task, cells=(cell,)))
    else:
        yield from (failed(cell, task.platform, "the measurer gave no record for this cell") for cell in left)


@contextlib.contextmanager
def sole_profile(folder: Path) -> Iterator[None]:
    """Hold the folder alone: two profiles at once would measure each other. The lock ends with the process.

    Raises RunError if another process holds it.
    """
    with storage_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"only one process may profile into {folder} at a time, but another one does; wait until it ends"
            ) from None
        yield
    finally:
        os.close(descriptor)
