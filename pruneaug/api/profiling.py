"""The verb `profile`: measure the platform for a job's network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from pruneaug.api.job import Job, OpenJob, Progress, open_job, stage
from pruneaug.latency.rest import alike, sampled_sparsities, write_rest
from pruneaug.network.layers import Network
from pruneaug.profiler.plan import plan, wanted
from pruneaug.profiler.remote.detect import warnings_of
from pruneaug.profiler.rest import measure_rest, sample_network
from pruneaug.profiler.run import DEFAULT_MEASURER, REMOTE_MEASURER, ProfileResult, profile_ops, sole_profile
from pruneaug.searcher.rules import dense_ops, measured_choices
from pruneaug.tasks.protocol import Task

TIMEOUT_S = 120.0  # of silence: one cell takes well under a second, a large layer's reference some seconds
_REMOTE_WAITS = 5  # timeouts of a device: its measuring process waits too, and tells more


def profile(
    job: Job, *, task: Task | None = None, measurer: str | None = None, progress: Progress | None = None
) -> ProfileResult:
    """Measure what the job's search can choose and has no time for yet, into the platform's latency table.

    Then the network is run sparse, for what it takes beside its layers and what these take in it. What was measured is
    kept at any stop. `measurer` is `package.module:attr`; none: this machine's, or the remote device's.
    Raises InputError for a wrong job, MeasurementError if the platform cannot measure, StorageError.
    """
    return profile_job(open_job(job, task), measurer, progress)


def profile_job(job: OpenJob, measurer: str | None = None, progress: Progress | None = None) -> ProfileResult:
    """`profile` for a job that is already open."""
    dense_only = dense_ops(job.network, job.spec.space)  # a rule that matches no layer shows before hours of measuring
    patterns, sparsities = measured_choices(job.network, job.spec.space)
    result = profile_ops(
        dict.fromkeys(layer.op for layer in job.network.layers),
        patterns,
        sparsities,
        job.platform,
        job.store,
        dense_only=dense_only,
        libraries=job.libraries,
        progress=stage(progress, "Profile"),
        **_how(job, measurer),
    )
    with sole_profile(job.store.folder):
        if job.rest() is None:
            told = stage(progress, "Whole network")
            table = job.store.table()
            choices = _sampled(job.network, patterns, sparsities)
            sampled = sample_network(job.model, job.example_inputs, job.network, table, *choices)
            rest = measure_rest(sampled, job.platform, told, remote=job.spec.platform.remote)
            write_rest(job.store.folder, rest)
    return result


def _how(job: OpenJob, measurer: str | None) -> dict[str, Any]:
    """How a job's platform is measured, as keyword arguments of `profile_ops`."""
    remote = job.spec.platform.remote
    if measurer is not None or remote is None:
        return {"measurer": measurer or DEFAULT_MEASURER, "timeout_s": TIMEOUT_S}
    return {
        "measurer": REMOTE_MEASURER,
        "options": {"remote": remote.model_dump(mode="json")},
        "timeout_s": max(TIMEOUT_S, _REMOTE_WAITS * remote.timeout_s),
        "workers": remote.devices,
        "observed": partial(warnings_of, remote),
    }


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
        len(plan(ops, patterns, sparsities, job.store, job.libraries, dense_only)),
        len(wanted(ops, patterns, sparsities, job.libraries, dense_only)),
    )
