"""The verb `search`: find the fastest network that is accurate enough."""

from __future__ import annotations

import warnings
from typing import Any

from pruneaug.api.following import Following, layers_json, make_trackers
from pruneaug.api.job import Job, OpenJob, Progress, open_job
from pruneaug.searcher.result import SearchResult
from pruneaug.searcher.rundir import RunDir, read_json
from pruneaug.searcher.study import run_search
from pruneaug.tasks.protocol import Task


def search(job: Job, *, task: Task | None = None, progress: Progress | None = None) -> SearchResult:
    """Search, or go on with a search of this job that was stopped or killed.

    `task` is the user's own network and data (see `pruneaug.tasks.task_from_modules`), instead of the one that the job
    names. Raises InputError for a wrong job or a platform that was not profiled, TrainingError, StorageError.
    """
    return search_job(open_job(job, task), progress)


def search_job(job: OpenJob, progress: Progress | None = None) -> SearchResult:
    """`search` for a job that is already open."""
    if job.task.trained and "train" in job.spec.task.model_fields_set:
        warnings.warn(
            "`task.train` is not used: the network is taken as trained; give an untrained one with `trained=False`, or "
            "leave out `checkpoint`",
            RuntimeWarning,
            stacklevel=2,
        )
    table, rest_us, _ = job.measured()
    run = RunDir(job.spec.run)

    def facts() -> dict[str, Any]:
        return layers_json(job, table, float(read_json(run.info)["rest_us"]))  # that of the run's begin

    with Following(run.path, facts, make_trackers(job), progress) as following:
        return run_search(job.spec, job.task, job.network, table, rest_us, run.path, progress=following)
