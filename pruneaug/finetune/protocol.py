"""What a fine-tuner is, what it gives, and what it may take besides."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from pruneaug.pruners.protocol import Masks, Pruned
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Task

Progress = Callable[[int, int, float], None]
"""Called with (step, total steps, loss); step counts from 1."""


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """What was trained: the masks that the network now holds, on the CPU, and how long it took.

    steps, epochs: all that the network was trained for, those before an interruption included. last_loss: NaN if it
        was not trained.
    stopped: a rung's `judge` ended the training before its time.
    """

    masks: Masks
    steps: int
    epochs: float
    last_loss: float
    stopped: bool = False


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

        `spec.epochs` is above 0: without training no fine-tuner is asked (see `hold_untrained`).
        Leaves the model on `device`, in eval mode, with exact zeros where the masks are off. `teacher` is the dense
        network that a spec with distillation learns from. The same seed gives the same result on the same machine.

        Raises TrainingError if the loss stops being finite.

        A fine-tuner may take two more keywords, `rungs` (see Rungs) and `dense` (see DenseTraining); `accepts` tells.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rung:
    """A training on its way: what a judge is shown.

    epochs: trained so far. model: on the training's device, in eval mode, its masks held. masks: on the CPU.
    """

    epochs: float
    steps: int
    model: nn.Module
    masks: Masks


@dataclass(frozen=True, slots=True)
class Rungs:
    """Where a training is looked at, and perhaps ended, before its time; and where it goes on after a kill.

    epochs: at which `judge` is called, of the `spec.epochs` in all. The learning rate's schedule is that of the whole
        training, so a training that no judge ends gives, bit for bit, what it gives without rungs. Rungs at the same
        step count once; the end is no rung: there `finetune` returns.
    judge: called with each Rung; False ends the training. It may re-estimate batch norms, evaluate and draw random
        numbers: parameters, buffers, modes and random state are put back before training goes on.
    checkpoint: a file (or None) that holds everything the training needs to go on. It is written at each rung, before
        the judge is called, and from time to time between them (once a minute; more seldom where that would take more
        than a fiftieth of the training's time), whole or not at all. A training that finds it there (same spec, seed,
        task, masks and weights to begin with, same rungs or not) goes on from it and ends, bit for bit, as if it had
        never been interrupted; if it is that of a rung, its first act is to call the judge once more for it, for the
        answer may have been lost. One that is broken or belongs to another training is ignored with a warning. The
        training never removes it: its owner does, when the result is safe. A training that a judge ended can be
        continued in the same way: by a judge that says True.

    A pruner with `observe` must give `state` for this (see Pruned); without it nothing is written and an interrupted
    training begins anew.
    """

    epochs: tuple[float, ...]
    judge: Callable[[Rung], bool] = lambda rung: True
    checkpoint: Path | None = None


@dataclass(frozen=True, slots=True)
class DenseTraining:
    """How the dense network came to be, for fine-tuners that repeat a part of that.

    early: its weights (a state dict) after the fraction of its training that `Rewinder.early_fraction` names; None if
        nobody kept them.
    """

    spec: TrainSpec
    early: Mapping[str, torch.Tensor] | None = None


@runtime_checkable
class Rewinder(Protocol):
    """A fine-tuner that goes back to the dense network's early weights. Its `finetune` takes `dense`.

    Whoever trains the dense network keeps its state dict at that point, by a rung at `early_fraction * spec.epochs`.
    """

    @property
    def early_fraction(self) -> float | None:
        """The fraction of the dense training, in (0, 1), after which it wants the weights; None: it wants none."""
        ...


def accepts(finetuner: Any, keyword: str) -> bool:
    """Whether a fine-tuner's `finetune` takes this optional keyword (`rungs`, `dense`)."""
    return keyword in inspect.signature(finetuner.finetune).parameters
