"""Tasks: the network to prune, its data and its accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the network is called with, `model(*inputs)`, and the class of every sample.

    inputs: tensors [batch, ...]; targets: int64 [batch].
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(tuple(tensor.to(device) for tensor in self.inputs), self.targets.to(device))


@runtime_checkable
class Task(Protocol):
    """A network, its train, validation and test data, and how good the network is on them.

    Choices are made on `validation`; `test` is for the numbers that are reported.
    """

    @property
    def name(self) -> str: ...

    @property
    def trained(self) -> bool:
        """Whether `build_model` gives trained weights; if not, the network is trained first."""
        ...

    def build_model(self) -> nn.Module:
        """A fresh network on the CPU; every call gives the same weights."""
        ...

    def example_inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Inputs of `batch` samples as the network sees them when it runs."""
        ...

    def batches(self, split: Split, batch_size: int, seed: int | None = None) -> Iterable[Batch]:
        """One pass over the split.

        With a seed: shuffled and augmented, the same for the same seed. Without: in order, not augmented.
        """
        ...

    def size(self, split: Split) -> int:
        """Number of samples."""
        ...

    def logits(self, model_output: Any) -> Tensor:
        """The scores [batch, classes] in what the network returned."""
        ...

    def loss(self, model_output: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """The mean training loss of a batch, a scalar that can be differentiated."""
        ...

    def evaluate(self, model: nn.Module, split: Split) -> float:
        """Accuracy in [0, 1], on the model's own device. Raises TrainingError if an output is not finite."""
        ...
