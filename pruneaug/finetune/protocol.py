"""What a fine-tuner is, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from pruneaug.pruners.protocol import Masks, Pruned
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Task

Progress = Callable[[int, int, float], None]
"""Called with (step, total steps, loss); step counts from 1."""


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """What was trained: the masks that the network now holds, on the CPU, and how long it took."""

    masks: Masks
    steps: int
    epochs: float
    last_loss: float


class FineTuner(Protocol):
    """Trains a network under its masks."""

    def finetune(
        self,
        model: nn.Module,
        pruned: Pruned | None,
        task: Task,
        spec: TrainSpec,
        *,
        seed: int,
        teacher: nn.Module | None = None,
        progress: Progress | None = None,
        device: torch.device | str = "cpu",
    ) -> FineTuneResult:
        """Train `model` in place on the task's training split; `pruned` None trains a dense network.

        Leaves the model on `device`, in eval mode, with exact zeros where the masks are off. `teacher` is the dense
        network that a spec with distillation learns from. The same seed gives the same result on the same machine.

        Raises TrainingError if the loss stops being finite.
        """
        ...
