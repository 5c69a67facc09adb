"""How far a search is."""

from __future__ import annotations

from collections.abc import Callable

from pruneaug.finetune.protocol import Progress as TrainingProgress

Progress = Callable[[str, int, int, str], None]
"""(stage, done, in all, a note): stages are "Dense training", "Search", "Trial 7" and "Final fine-tuning"."""


def training_progress(progress: Progress | None, stage: str) -> TrainingProgress | None:
    """What a fine-tuner reports to, told as a stage."""
    if progress is None:
        return None
    return lambda step, total, loss: progress(stage, step, total, f"loss {loss:.3g}")
