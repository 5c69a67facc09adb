"""A task's training data as loops outside pruneaug expect it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from pruneaug.finetune.data import epoch_batches, steps_per_epoch
from pruneaug.tasks.protocol import Task

Pair = tuple[torch.Tensor | tuple[torch.Tensor, ...], torch.Tensor]


class Passes(IterableDataset[Pair]):
    """Batches as (inputs, targets), each pass over them an epoch, shuffled anew by the seed.

    inputs: a tensor, or a tuple of tensors where the network takes several. taken: batches given out so far.
    """

    def __init__(self, task: Task, batch_size: int, seed: int) -> None:
        self.taken = 0
        self._task, self._batch_size, self._seed = task, batch_size, seed
        self._epoch = 0
        self._length = steps_per_epoch(task.size("train"), batch_size)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Pair]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        for batch in epoch_batches(self._task, self._batch_size, self._seed, epoch):
            self.taken += 1
            yield (batch.inputs[0] if len(batch.inputs) == 1 else batch.inputs), batch.targets


def make_loader(passes: Passes) -> DataLoader[Any]:
    """A DataLoader that gives the batches as they are, in this process."""
    return DataLoader(passes, batch_size=None)
