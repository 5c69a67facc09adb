"""How far a search is."""

from __future__ import annotations

from collections.abc import Callable

from pruneaug.finetune.protocol import Progress as TrainingProgress
from pruneaug.searcher.work import TrialWork

Progress = Callable[[str, int, int, str], None]
"""(stage, done, in all, a note): stages are "Dense training", "Search", "Trial 7" and "Final fine-tuning"."""


def training_progress(progress: Progress | None, stage: str) -> TrainingProgress | None:
    """What a fine-tuner reports to, told as a stage."""
    if progress is None:
        return None
    return lambda step, total, loss: progress(stage, step, total, f"loss {loss:.3g}")


def work_progress(progress: Progress | None, work: TrialWork) -> TrainingProgress | None:
    """What the training of one work reports to."""
    return training_progress(progress, work_stage(work))


def work_stage(work: TrialWork) -> str:
    return f"Trial {work.number}" if work.refine is None else "Final fine-tuning"
