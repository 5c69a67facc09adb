"""The verb `profile`: measure the platform for a job's network."""

from __future__ import annotations

from pruneaug.api.job import Job, OpenJob, Progress, open_job
from pruneaug.latency.rest import write_rest
from pruneaug.network.ops import Op
from pruneaug.profiler.network import measure_rest
from pruneaug.profiler.plan import wanted
from pruneaug.profiler.run import DEFAULT_MEASURER, ProfileResult, profile_ops
from pruneaug.searcher.space import matching_rule
from pruneaug.tasks.protocol import Task

TIMEOUT_S = 120.0  # of silence: one cell takes well under a second, a large layer's reference some seconds


def profile(
    job: Job, *, task: Task | None = None, measurer: str = DEFAULT_MEASURER, progress: Progress | None = None
) -> ProfileResult:
    """Measure what the job's search can choose and has no time for yet, into the platform's latency table.

    Then the dense network is run once for what it takes beside its layers. What was measured is kept at any stop.
    Raises InputError for a wrong job, MeasurementError if this machine cannot measure, StorageError.
    """
    return profile_job(open_job(job, task), measurer, progress)


def profile_job(job: OpenJob, measurer: str = DEFAULT_MEASURER, progress: Progress | None = None) -> ProfileResult:
    """`profile` for a job that is already open."""
    patterns, sparsities = measured_choices(job)
    report = None if progress is None else lambda done, total, note: progress("Profile", done, total, note)
    ops = dict.fromkeys(layer.op for layer in job.network.layers)
    result = profile_ops(
        ops, patterns, sparsities, job.platform, job.store, timeout_s=TIMEOUT_S, measurer=measurer, progress=report
    )
    if job.rest() is None:
        table = job.store.table()
        write_rest(job.store.folder, measure_rest(job.model, job.program(job.model), job.network, table, job.platform))
    return result


def measured_choices(job: OpenJob) -> tuple[list[str], list[float]]:
    """The patterns and sparsities that any layer of the job may have."""
    space = job.spec.space
    rules = [rule for layer in job.network.layers if (rule := matching_rule(layer.name, space.layers)) is not None]
    patterns = dict.fromkeys([*space.patterns, *(p for rule in rules for p in rule.patterns or ())])
    sparsities = dict.fromkeys([*space.sparsities, *(s for rule in rules for s in rule.sparsities or ())])
    return list(patterns), sorted(sparsities)


def cells_to_measure(job: OpenJob) -> tuple[int, int]:
    """(cells without a time, cells in all) of the job's profile."""
    ops: list[Op] = [layer.op for layer in job.network.layers]
    patterns, sparsities = measured_choices(job)
    every = wanted(ops, patterns, sparsities)
    known = {(r.op, r.pattern, r.sparsity, r.library) for r in job.store.load() if r.error is None}
    return sum((c.op, c.pattern, c.sparsity, c.library) not in known for c in every), len(every)
