"""A candidate: the dense network pruned by an assignment, fine-tuned, and judged on validation data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from pruneaug.errors import PluginError, TrainingError
from pruneaug.finetune.batchnorm import BATCHNORM_BATCHES, reestimate_batchnorm
from pruneaug.finetune.held import hold_untrained
from pruneaug.finetune.protocol import DenseTraining, FineTuner, FineTuneResult, Progress, Rung, Rungs, accepts
from pruneaug.network.layers import Network, apply_masks, get_weight
from pruneaug.pruners.protocol import Masks, Pruned, Pruner, TaskCalibration
from pruneaug.searcher.origin import Origin
from pruneaug.searcher.space import SearchSpace
from pruneaug.sparsity.masks import check_mask
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import DENSE, Assignment, LayerChoice
from pruneaug.spec.models import FineTuneSpec, TrainSpec
from pruneaug.tasks.protocol import Task


@dataclass(frozen=True, slots=True)
class Candidate:
    """weights: a state dict on the CPU; accuracy: on validation data, in [0, 1]; epochs: of its fine-tuning.

    stopped: a rung ended its fine-tuning before its time; the accuracy is then that of the rung.
    """

    weights: Mapping[str, torch.Tensor]
    masks: Masks
    accuracy: float
    epochs: float
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """How a fine-tuning goes on its way.

    rungs: epochs at which `judge` is called with the epochs and the validation accuracy then; False ends the training.
    checkpoint: a file from which an interrupted training goes on. origin: what a trial begins with instead of dense; a
    pruned network that is fine-tuned for longer takes the weights that both keep from it.
    """

    rungs: tuple[float, ...] = ()
    judge: Callable[[float, float], bool] = lambda epochs, accuracy: True
    checkpoint: Path | None = None
    origin: Origin | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it asks for nothing."""
        return not self.rungs and self.checkpoint is None and self.origin is None


class Evaluator(Protocol):
    """Makes candidates. The same seed gives the same candidate on the same machine.

    Both methods get a keyword `session`, a Session, if the job asks for rungs, inherited weights or checkpoints; an
    evaluator without it serves all other jobs. An evaluator that goes to other processes is pickled.
    """

    def prune(self, assignment: Assignment, *, seed: int, progress: Progress | None = None) -> Candidate:
        """Prune the dense network and fine-tune it as in every trial."""
        ...

    def refine(
        self, weights: Mapping[str, torch.Tensor], masks: Masks, *, seed: int, progress: Progress | None = None
    ) -> Candidate:
        """Fine-tune a pruned network for longer, its masks held."""
        ...


@dataclass(frozen=True, slots=True)
class PruneAndFineTune:
    """The evaluator of a job. `dense` is not changed; it is the teacher if the spec asks for distillation."""

    task: Task
    network: Network
    dense: nn.Module
    pruner: Pruner
    finetuner: FineTuner
    spec: FineTuneSpec
    device: str = "cpu"
    dense_training: DenseTraining | None = None

    def prune(
        self, assignment: Assignment, *, seed: int, progress: Progress | None = None, session: Session | None = None
    ) -> Candidate:
        model = copy.deepcopy(self.dense)
        origin = None if session is None else session.origin
        if origin is not None:
            origin.put_into(model)
        model.to(self.device)
        before = {} if origin is None else {name: get_weight(model, name).detach().clone() for name in origin.masks}
        data = TaskCalibration(self.task, self.spec.trial.batch_size, seed)
        pruned = self.pruner.prune(model, self.network, assignment, data)
        if origin is not None and pruned.revise is None:
            # Weights that the pruner has updated go with its own mask.
            own = {name for name, weight in before.items() if not torch.equal(get_weight(model, name), weight)}
            masks = {name: mask for name, mask in pruned.masks.items() if name not in own}
            pruned = replace(pruned, masks=pruned.masks | origin.same_masks(masks, assignment))
        apply_masks(model, pruned.masks)
        candidate = self._finetune(model, pruned, self.spec.trial, seed, progress, session or Session())
        if not candidate.stopped:  # on its way to N:M a layer keeps more
            check_masks(candidate.masks, assignment)
        return candidate

    def refine(
        self,
        weights: Mapping[str, torch.Tensor],
        masks: Masks,
        *,
        seed: int,
        progress: Progress | None = None,
        session: Session | None = None,
    ) -> Candidate:
        model = copy.deepcopy(self.dense)
        model.load_state_dict(weights)
        if session is not None and session.origin is not None:
            session.origin.put_into(model)
            apply_masks(model, masks)
        return self._finetune(model, Pruned(dict(masks)), self.spec.final, seed, progress, session or Session())

    def _finetune(
        self,
        model: nn.Module,
        pruned: Pruned,
        spec: TrainSpec,
        seed: int,
        progress: Progress | None,
        session: Session,
    ) -> Candidate:
        if spec.epochs > 0:
            result = self._train(model, pruned, spec, seed, progress, session)
        else:
            result = hold_untrained(model.to(self.device), pruned)
        _check_held(model, result.masks)
        accuracy = 0.0 if result.stopped else self._judge(model, spec, seed)
        weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        return Candidate(weights, result.masks, accuracy, result.epochs, result.stopped)

    def _train(
        self,
        model: nn.Module,
        pruned: Pruned,
        spec: TrainSpec,
        seed: int,
        progress: Progress | None,
        session: Session,
    ) -> FineTuneResult:
        def judge(rung: Rung) -> bool:
            return session.judge(rung.epochs, self._judge(rung.model, spec, seed))

        options: dict[str, Any] = {}
        if (session.rungs or session.checkpoint is not None) and accepts(self.finetuner, "rungs"):
            options["rungs"] = Rungs(session.rungs, judge, session.checkpoint)
        if self.dense_training is not None and accepts(self.finetuner, "dense"):
            options["dense"] = self.dense_training
        return self.finetuner.finetune(
            model,
            pruned,
            self.task,
            spec,
            seed=seed,
            teacher=self.dense if spec.needs_teacher else None,
            progress=progress,
            device=self.device,
            **options,
        )

    def _judge(self, model: nn.Module, spec: TrainSpec, seed: int) -> float:
        """The validation accuracy, with batch-norm statistics of the weights as they are now."""
        batches = self.task.batches("train", spec.batch_size, seed)
        reestimate_batchnorm(model, islice(batches, BATCHNORM_BATCHES))
        return finite_accuracy(self.task.evaluate(model, "validation"))


def finite_accuracy(accuracy: float) -> float:
    """Raises TrainingError unless the accuracy is a number in [0, 1]."""
    value = float(accuracy)
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise TrainingError(
            f"an accuracy must lie in [0, 1], but the task's `evaluate` gave {value}; lower the learning rate, "
            "or mend the task"
        )
    return value


def check_masks(masks: Masks, assignment: Assignment) -> None:
    """Raises PluginError unless every mask has its layer's pattern and no layer is without the mask it should have."""
    assigned = {name for name, choice in assignment.items() if not choice.is_dense}
    if masks.keys() != assigned:
        wrong = ", ".join(sorted(masks.keys() ^ assigned))
        raise PluginError(f"a pruner must give a mask to each layer that is not dense and no other, but see {wrong}")
    for name, mask in masks.items():
        pattern = assignment[name].pattern
        if pattern is not None and not check_mask(weight_matrix(mask), pattern):
            raise PluginError(
                f"a pruner must remove whole blocks, or with N:M keep N of each M, but the mask of layer {name!r} is "
                f"none of {pattern}; use pruneaug.sparsity.masks.block_mask"
            )


def achieved(assignment: Assignment, sparsities: Mapping[str, float], space: SearchSpace) -> dict[str, LayerChoice]:
    """The assignment with its masks' own sparsities, where they differ by more than a block from what was asked.

    A sparsity outside the layer's range is moved into it from above; below the range the layer counts as dense.
    """
    layers = {layer.name: layer for layer in space.layers}

    def choice_of(name: str, asked: LayerChoice) -> LayerChoice:
        if asked.pattern is None:
            return DENSE
        layer, sparsity = layers[name], sparsities[name]
        rows, cols = asked.pattern.grid(layer.layer.op.matrix_shape)
        if abs(sparsity - asked.sparsity) <= 1 / (rows * cols):
            return asked
        lowest = min(choice.sparsity for choice in layer.choices if choice.pattern == asked.pattern)
        return DENSE if sparsity < lowest else layer.nearest(asked.pattern, sparsity)

    return {name: choice_of(name, asked) for name, asked in assignment.items()}


def _check_held(model: nn.Module, masks: Masks) -> None:
    for name, mask in masks.items():
        weight = get_weight(model, name).detach()
        if bool(weight[~mask.to(weight.device)].count_nonzero()):
            raise PluginError(
                f"a fine-tuner must hold the masks, but removed weights of layer {name!r} came back; "
                "call pruneaug.network.layers.apply_masks after every step"
            )
