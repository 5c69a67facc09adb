"""The verb `profile`: measure the platform for a job's network."""

from __future__ import annotations

from collections.abc import Sequence

from pruneaug.api.job import Job, OpenJob, Progress, open_job, stage
from pruneaug.latency.rest import alike, sampled_sparsities, write_rest
from pruneaug.network.layers import Network
from pruneaug.profiler.plan import plan, wanted
from pruneaug.profiler.rest import measure_rest, sample_network
from pruneaug.profiler.run import DEFAULT_MEASURER, ProfileResult, profile_ops, sole_profile
from pruneaug.searcher.rules import dense_ops, measured_choices
from pruneaug.tasks.protocol import Task

TIMEOUT_S = 120.0  # of silence: one cell takes well under a second, a large layer's reference some seconds


def profile(
    job: Job, *, task: Task | None = None, measurer: str = DEFAULT_MEASURER, progress: Progress | None = None
) -> ProfileResult:
    """Measure what the job's search can choose and has no time for yet, into the platform's latency table.

    Then the network is run sparse, for what it takes beside its layers and what these take in it. What was measured is
    kept at any stop.
    Raises InputError for a wrong job, MeasurementError if this machine cannot measure, StorageError.
    """
    return profile_job(open_job(job, task), measurer, progress)


def profile_job(job: OpenJob, measurer: str = DEFAULT_MEASURER, progress: Progress | None = None) -> ProfileResult:
    """`profile` for a job that is already open."""
    dense_only = dense_ops(job.network, job.spec.space)  # a rule that matches no layer shows before hours of measuring
    patterns, sparsities = measured_choices(job.network, job.spec.space)
    result = profile_ops(
        dict.fromkeys(layer.op for layer in job.network.layers),
        patterns,
        sparsities,
        job.platform,
        job.store,
        timeout_s=TIMEOUT_S,
        measurer=measurer,
        dense_only=dense_only,
        progress=stage(progress, "Profile"),
    )
    with sole_profile(job.store.folder):
        if job.rest() is None:
            told = stage(progress, "Whole network")
            table = job.store.table()
            choices = _sampled(job.network, patterns, sparsities)
            sampled = sample_network(job.model, job.example_inputs, job.network, table, *choices)
            rest = measure_rest(sampled, job.platform, told)
            write_rest(job.store.folder, rest)
    return result


def _sampled(network: Network, patterns: Sequence[str], sparsities: Sequence[float]) -> tuple[str, tuple[float, ...]]:
    """The pattern that most layers can have, the first of several, and the sparsities at which the network is run."""
    counts = {pattern: len(alike(network, pattern, 0.0)) for pattern in patterns}
    if not sparsities or not any(counts.values()):
        return "dense", (0.0,)
    return max(counts, key=lambda pattern: counts[pattern]), sampled_sparsities(sparsities)


def cells_to_measure(job: OpenJob) -> tuple[int, int]:
    """(cells without a time, cells in all) of the job's profile."""
    ops = [layer.op for layer in job.network.layers]
    patterns, sparsities = measured_choices(job.network, job.spec.space)
    dense_only = dense_ops(job.network, job.spec.space)
    return (
        len(plan(ops, patterns, sparsities, job.store, dense_only=dense_only)),
        len(wanted(ops, patterns, sparsities, dense_only=dense_only)),
    )
