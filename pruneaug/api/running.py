"""The verb `run`: the whole job, from profile to report."""

from __future__ import annotations

import warnings

from pruneaug.api.exporting import Exported, export_job
from pruneaug.api.job import Job, Progress, open_job
from pruneaug.api.profiling import profile_job
from pruneaug.api.searching import search_job
from pruneaug.files import check_folder
from pruneaug.profiler.run import ProfileResult
from pruneaug.searcher.rundir import RunDir
from pruneaug.searcher.study import make_plugins
from pruneaug.tasks.protocol import Task


def run(
    job: Job, *, task: Task | None = None, measurer: str | None = None, progress: Progress | None = None
) -> Exported:
    """Profile, search, export, measure, report. A run that was stopped or killed goes on where it was.

    Warns of what may be wrong with the times. Raises what `profile`, `search` and `export` raise.
    """
    opened = open_job(job, task)
    make_plugins(opened.spec)  # a name that is none shows before hours of measuring
    run_dir = RunDir(opened.spec.run)
    check_folder(run_dir.path)
    # A search keeps the times it began with: a cell that failed then must not get one now.
    if not run_dir.info.exists():
        _warn(profile_job(opened, measurer, progress))
    search_job(opened, progress)
    return export_job(opened, run_dir, progress=progress)


def _warn(profiled: ProfileResult) -> None:
    texts = list(profiled.warnings)
    if profiled.failed:
        first = profiled.failed[0]
        texts.append(
            f"{len(profiled.failed)} cells could not be measured and cannot be chosen; the first, {first.op.key} "
            f"{first.pattern}@{first.sparsity:g}: {first.error}"
        )
    for text in texts:
        warnings.warn(text, RuntimeWarning, stacklevel=3)
