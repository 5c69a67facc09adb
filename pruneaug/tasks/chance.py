"""What guessing would reach, and whether a network is much better than that."""

from __future__ import annotations

from collections import Counter

from pruneaug.tasks.protocol import Task

_BATCH = 256
_LEAST = 0.1
"""Of the way from guessing to always right: a network below it has hardly learned anything."""


def chance_accuracy(task: Task) -> float:
    """The validation accuracy of who always names the most frequent class, in [0, 1]."""
    counts: Counter[int] = Counter()
    for batch in task.batches("validation", _BATCH):
        counts.update(batch.targets.flatten().tolist())
    return max(counts.values()) / counts.total()


def undertrained(accuracy: float, chance: float) -> str | None:
    """What to say of a dense network whose accuracy is about that of guessing; None if it is clearly better."""
    if chance >= 1 or accuracy - chance >= _LEAST * (1 - chance):
        return None
    return (
        f"the dense network should be far better than guessing, but its validation accuracy is {100 * accuracy:.1f} %, "
        f"and naming always the most frequent class gives {100 * chance:.1f} %: what a search finds with it means "
        "little; train it longer (task.train), or check the checkpoint and the labels"
    )
