"""What a pruner is, what it is given and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

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

    A method that learns from the gradients of the fine-tuning gives `observe(model)`: it is called after each backward
    pass, before the optimizer's step. What `observe` and `revise` remember between calls are tensors in `state`: an
    interrupted fine-tuning stores them and puts their values back into the same tensors (or new keys) to go on.
    """

    masks: Masks
    revise: Callable[[nn.Module, float], Masks] | None = None
    observe: Callable[[nn.Module], None] | None = None
    state: dict[str, torch.Tensor] | None = None


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
        placed = batch.to(next(model.parameters()).device)
        return self.task.loss(model(*placed.inputs), placed)


class Pruner(Protocol):
    """Chooses the weights to remove."""

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        """Masks for the layers that `assignment` does not leave dense.

        May update the weights that are kept; setting the others to zero is the caller's part (`apply_masks`).
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Scores weights before any is removed; most pruners are scorers too."""

    def scores(self, model: nn.Module, network: Network, data: CalibrationData | None) -> Mapping[str, torch.Tensor]:
        """What each weight matters: layer name -> float32, at least 0, in the layout of the layer's weight.

        Of all layers in `network`, and of no other: a `Network` of some of the layers is scored alone. The model is
        left as found. Raises InputError if the method needs data and gets none.
        """
        ...
