"""The training data, epoch after epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pruneaug.errors import TaskError
from pruneaug.tasks.protocol import Batch, Task


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Batches in a pass over `size` samples; a left-over batch of a single sample is dropped."""
    full, rest = divmod(size, batch_size)
    return max(1, full + (rest > 1 or (rest == 1 and batch_size == 1)))


def total_steps(task: Task, epochs: float, batch_size: int) -> int:
    """Steps of a training; one at least."""
    return max(1, round(epochs * steps_per_epoch(task.size("train"), batch_size)))


def epoch_batches(task: Task, batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
    """One pass over the training data, shuffled and augmented as is this epoch's.

    A left-over batch of a single sample is dropped: batch norm has no variance there.
    Raises TaskError if there is no other.
    """
    empty = True
    for batch in task.batches("train", batch_size, seed=seed * 100_003 + epoch):
        if len(batch) > 1 or batch_size == 1:
            empty = False
            yield batch
    if empty:
        raise TaskError(
            f"a training split must give at least one batch of two samples, but that of task {task.name!r} gives none "
            f"(size {task.size('train')}, batch_size {batch_size})"
        )


class EndlessBatches(Iterator[Batch]):
    """Batches of one epoch after the other; what was given out so far can be named, and sought again.

    epoch, taken: `taken` batches of this epoch have been given out.
    random_state: of PyTorch's CPU generator when the epoch began; a loader without a seed of its own draws from it.
    """

    def __init__(self, task: Task, batch_size: int, seed: int) -> None:
        self._task, self._batch_size, self._seed = task, batch_size, seed
        self._begin(0)

    def __next__(self) -> Batch:
        batch = next(self._pass, None)
        if batch is None:
            self._begin(self.epoch + 1)
            batch = next(self._pass)
        self.taken += 1
        return batch

    def seek(self, epoch: int, taken: int, random_state: torch.Tensor) -> None:
        """Go where `epoch`, `taken` and `random_state` were read. Leaves PyTorch's generator changed."""
        torch.set_rng_state(random_state)
        self._begin(epoch)
        for _ in range(taken):
            next(self)

    def _begin(self, epoch: int) -> None:
        self.epoch, self.taken = epoch, 0
        self.random_state = torch.get_rng_state()
        self._pass = epoch_batches(self._task, self._batch_size, self._seed, epoch)
