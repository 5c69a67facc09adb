"""The verb `run`: the whole job, from profile to report."""

from __future__ import annotations

from pruneaug.api.exporting import Exported, export_job
from pruneaug.api.job import Job, Progress, open_job
from pruneaug.api.profiling import profile_job
from pruneaug.api.searching import search_job
from pruneaug.profiler.run import DEFAULT_MEASURER
from pruneaug.searcher.rundir import RunDir
from pruneaug.tasks.protocol import Task


def run(
    job: Job, *, task: Task | None = None, measurer: str = DEFAULT_MEASURER, progress: Progress | None = None
) -> Exported:
    """Profile, search, export, measure, report. A run that was stopped or killed goes on where it was.

    Raises what `profile`, `search` and `export` raise.
    """
    opened = open_job(job, task)
    profile_job(opened, measurer, progress)
    search_job(opened, progress)
    return export_job(opened, RunDir(opened.spec.run), progress=progress)
