"""Rewinding: the last part of the dense training again, with the masks (Renda et al., arXiv:2003.02389)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pruneaug.errors import NetworkError, SpecError
from pruneaug.finetune.data import total_steps
from pruneaug.finetune.protocol import DenseTraining, FineTuneResult, Progress, Rungs
from pruneaug.finetune.schedule import Rate, learning_rate
from pruneaug.finetune.train import train
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Task

_EARLY = 0.1  # weights are rewound to here, if nothing else is said


class Rewind:
    """Takes the learning rate, or the weights too, back to where they were at a point of the dense training.

    rewind: `learning_rate` keeps the trained weights and repeats the schedule; `weights` also puts the weights back
        that the network had there.
    start: that point, as a fraction of the dense training. None: for the learning rate so that the rest is as long as
        this training, as in the paper; for weights 0.1. A rest of another length is stretched or squeezed to it.
    early: for `weights`, a file (.safetensors) with the weights of that point, where the dense network was trained
        elsewhere.

    The rate, its warm-up and its schedule are those of the dense training (`task.train`); all else is said where this
    training is. A dense network itself (no masks) is trained plainly.
    """

    def __init__(
        self,
        rewind: Literal["learning_rate", "weights"] = "learning_rate",
        start: float | None = None,
        early: str | None = None,
    ) -> None:
        if rewind not in ("learning_rate", "weights"):
            raise SpecError(f"`rewind` must be 'learning_rate' or 'weights', but got {rewind!r}")
        if start is not None and not 0 < start < 1:
            raise SpecError(f"`start` must lie between 0 and 1, a fraction of the dense training, but got {start!r}")
        if early is not None and rewind == "learning_rate":
            raise SpecError(
                f"`early` is for rewinding weights, but rewind is 'learning_rate' (early={early!r}); leave it out"
            )
        self.rewind, self.start, self.early = rewind, start, early

    @property
    def early_fraction(self) -> float | None:
        if self.rewind == "learning_rate" or self.early is not None:
            return None
        return self._start

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
        rungs: Rungs | None = None,
        dense: DenseTraining | None = None,
    ) -> FineTuneResult:
        rate: Rate = partial(learning_rate, spec=spec)
        if pruned is not None:
            if dense is None:
                raise SpecError(
                    "rewinding repeats a part of the dense training, but nothing is known of it here; give `dense` to "
                    "finetune, or fine-tune with `train`"
                )
            rate = self._rate(task, spec, dense.spec)
            if self.rewind == "weights":
                _put_back(model, self._early_weights(dense))
        return train(
            model,
            pruned,
            task,
            spec,
            rate,
            seed=seed,
            teacher=teacher,
            progress=progress,
            device=torch.device(device),
            rungs=rungs,
        )

    @property
    def _start(self) -> float:
        return _EARLY if self.start is None else self.start

    def _rate(self, task: Task, spec: TrainSpec, dense: TrainSpec) -> Rate:
        """The dense training's rate over its rest, squeezed into this training's steps."""
        of_dense = total_steps(task, dense.epochs, dense.batch_size)
        if self.start is None and self.rewind == "learning_rate":
            if spec.epochs > dense.epochs:
                raise SpecError(
                    f"the learning rate cannot go back further than the dense training began, but this training has "
                    f"{spec.epochs:g} epochs and that one {dense.epochs:g}; lower `epochs`, or set the option `start`"
                )
            rest = of_dense * spec.epochs / dense.epochs
        else:
            rest = of_dense * (1 - self._start)
        return lambda step, total: learning_rate(of_dense - rest * (1 - step / total), of_dense, dense)

    def _early_weights(self, dense: DenseTraining) -> Mapping[str, torch.Tensor]:
        if self.early is not None:
            try:
                weights: dict[str, torch.Tensor] = load_file(Path(self.early))
            except (OSError, SafetensorError) as error:
                raise SpecError(
                    f"`early` must be a .safetensors file of weights, but {self.early!r} is none: {error}"
                ) from error
            return weights
        if dense.early is None:
            raise SpecError(
                f"rewinding weights needs those after {self._start:g} of the dense training, but nobody kept them; "
                "begin a new run that trains the dense network itself (no `task.checkpoint`), name a file in the "
                "option `early`, or set `rewind: learning_rate`"
            )
        return dense.early


def _put_back(model: nn.Module, early: Mapping[str, torch.Tensor]) -> None:
    try:
        model.load_state_dict(dict(early))
    except RuntimeError as error:
        raise NetworkError(
            f"the early weights must be those of this network, but are not: {error}; name the right file in `early`"
        ) from error
