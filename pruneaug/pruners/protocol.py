"""What a pruner is, what it is given and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import nn

from pruneaug.network.layers import Network
from pruneaug.sparsity.patterns import Assignment
from pruneaug.tasks.protocol import Batch, Task

Masks = dict[str, torch.Tensor]
"""Layer name -> bool, in the layout of the layer's weight, True where the weight is kept."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """The masks to hold while fine-tuning.

    A method that raises sparsity while training gives `revise(model, progress)` too: the masks to hold from now on,
    with progress in [0, 1] of the fine-tuning's steps. It is called with progress 1 before the last step.
    """

    masks: Masks
    revise: Callable[[nn.Module, float], Masks] | None = None


class CalibrationData(Protocol):
    """Training data for pruners that look at activations or gradients."""

    def batches(self, count: int) -> Iterable[Batch]:
        """At most `count` batches, the same ones every time."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The mean loss of a batch, a scalar that can be differentiated."""
        ...


@dataclass(frozen=True, slots=True)
class TaskCalibration:
    """Calibration data drawn from a task's training split."""

    task: Task
    batch_size: int
    seed: int = 0

    def batches(self, count: int) -> Iterable[Batch]:
        return islice(self.task.batches("train", self.batch_size, self.seed), count)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self.task.loss(model(*batch.inputs), batch)


class Pruner(Protocol):
    """Chooses the weights to remove."""

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        """Masks for the layers that `assignment` does not leave dense.

        May update the weights that are kept; setting the others to zero is the caller's part (`apply_masks`).
        """
        ...
