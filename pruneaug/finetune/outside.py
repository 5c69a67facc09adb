"""Training loops that are not pruneaug's own: what they are given, what holds the masks in them, what is checked."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pruneaug.errors import PluginError, SpecError, TrainingError
from pruneaug.finetune.data import epoch_batches, steps_per_epoch, total_steps
from pruneaug.finetune.held import HeldMasks
from pruneaug.finetune.loader import Passes, make_loader
from pruneaug.finetune.protocol import FineTuneResult, Progress
from pruneaug.network.layers import get_weight
from pruneaug.pruners.protocol import Pruned
from pruneaug.registry import check_options
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Batch, Task

_log = logging.getLogger(__name__)

OFFERED = ("model", "loader", "masks", "loss", "epochs", "steps", "spec", "seed", "device", "teacher", "task")
"""What a user's function may ask for by the names of its parameters; the others are options."""


class Watch:
    """Holds the masks after each step of every PyTorch optimizer that trains this model, and counts the steps.

    It listens to the optimizers themselves, so the loop need not know of it.

    loss: of the last step, as far as anyone told.
    """

    def __init__(self, model: nn.Module, pruned: Pruned | None, total: int, progress: Progress | None) -> None:
        self.steps, self.total, self.loss = 0, total, math.nan
        self.held = HeldMasks(model, pruned)
        self._model, self._pruned, self._progress = model, pruned, progress
        self._trained = {id(parameter) for parameter in model.parameters()}
        self._undo = ExitStack()

    def __enter__(self) -> Watch:
        self.held.revise(0, self.total)
        self._undo.callback(register_optimizer_step_pre_hook(self._before_step).remove)
        self._undo.callback(register_optimizer_step_post_hook(self._after_step).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def finish(self) -> None:
        """Hold the final masks, also where the loop took fewer steps than planned or put other weights in."""
        back = sum(_nonzero(self._model, name, mask) for name, mask in self.held.masks.items())
        if back:
            _log.warning("the training loop brought %d removed weights back; they are zero again", back)
        self.held.set(self.held.masks)
        if self._pruned is not None and self._pruned.revise is not None and self.steps < self.total:
            self.held.set(self._pruned.revise(self._model, 1.0))

    def report_last(self) -> None:
        if self._progress is not None and self.steps > 0:
            self._progress(self.steps, self.steps, self.loss)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if self._is_ours(optimizer):
            self.held.observe()

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if not self._is_ours(optimizer):
            return
        self.held.apply()
        if self._progress is not None and self.steps > 0:  # one behind: which step is the last shows at the end
            self._progress(self.steps, max(self.total, self.steps + 1), self.loss)
        self.steps += 1
        if self.steps < self.total:
            self.held.revise(self.steps, self.total)

    def _is_ours(self, optimizer: torch.optim.Optimizer) -> bool:
        return any(id(parameter) in self._trained for group in optimizer.param_groups for parameter in group["params"])


def run_outside(
    loop: Callable[[Mapping[str, Any], Watch], Any],
    who: str,
    model: nn.Module,
    pruned: Pruned | None,
    task: Task,
    spec: TrainSpec,
    *,
    seed: int,
    teacher: nn.Module | None,
    progress: Progress | None,
    device: torch.device,
) -> FineTuneResult:
    """Let `loop` train the model: it gets the values of OFFERED by name, and the watch over its steps.

    Raises PluginError if the loop leaves another network behind, TrainingError if weights are not finite.
    """
    passes = Passes(task, spec.batch_size, seed)
    total = total_steps(task, spec.epochs, spec.batch_size)
    watch = Watch(model.to(device).train(), pruned, total, progress)

    def loss(output: Any, targets: torch.Tensor) -> torch.Tensor:
        value = task.loss(output, Batch((), targets), label_smoothing=spec.label_smoothing)
        watch.loss = float(value.detach())
        return value

    offered = {
        "model": model,
        "loader": make_loader(passes),
        "masks": watch.held.masks,
        "loss": loss,
        "epochs": spec.epochs,
        "steps": total,
        "spec": spec,
        "seed": seed,
        "device": device,
        "teacher": None if teacher is None else teacher.to(device).eval(),
        "task": task,
    }
    shapes = _shapes(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        with watch:
            returned = loop(offered, watch)
    if isinstance(returned, nn.Module) and returned is not model:
        raise PluginError(f"{who} must train the model it is given, in place, but returned another one")
    if _shapes(model) != shapes:
        names = ", ".join(sorted(_shapes(model).keys() ^ shapes.keys())[:5]) or "a shape"
        raise PluginError(f"{who} must leave the network's parts as they were, but changed {names}")
    model.to(device).eval().zero_grad(set_to_none=True)
    watch.finish()
    _check_finite(model, who)
    if isinstance(returned, int | float | torch.Tensor):
        watch.loss = float(returned.detach() if isinstance(returned, torch.Tensor) else returned)
    if not math.isfinite(watch.loss):
        watch.loss = _loss_now(model, task, spec, seed, device)
    watch.report_last()
    epoch_steps = steps_per_epoch(task.size("train"), spec.batch_size)
    return FineTuneResult(watch.held.on_cpu(), watch.steps, (passes.taken or watch.steps) / epoch_steps, watch.loss)


def check_signature(who: str, function: Any, options: Mapping[str, Any], offered: tuple[str, ...] = OFFERED) -> None:
    """Raises PluginError unless the function can be called with what is offered and with these options."""
    if not callable(function):
        raise PluginError(f"{who} must be a function or a class, but is {function!r}")
    check_options(who, function, options, (), select(function, dict.fromkeys(offered)))


def select(function: Any, offered: Mapping[str, Any]) -> dict[str, Any]:
    """What a function asks for by its parameters' names."""
    return {name: offered[name] for name in inspect.signature(function).parameters if name in offered}


def check_teacher(who: str, function: Any, spec: TrainSpec) -> None:
    """Raises SpecError if the spec asks for a distillation that this function cannot do."""
    if spec.needs_teacher and "teacher" not in inspect.signature(function).parameters:
        raise SpecError(
            f"distillation is up to your own training loop, but {who} does not ask for the `teacher` "
            f"(distillation={spec.distillation:g}, feature_distillation={spec.feature_distillation:g}); give it a "
            "parameter `teacher`, or set both to 0"
        )


def _nonzero(model: nn.Module, name: str, mask: torch.Tensor) -> int:
    weight = get_weight(model, name).detach()
    return int(weight[~mask.to(weight.device)].count_nonzero())


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _check_finite(model: nn.Module, who: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise TrainingError(
                f"trained weights must be finite, but {name!r} is not after {who}; lower its learning rate"
            )


@torch.no_grad()
def _loss_now(model: nn.Module, task: Task, spec: TrainSpec, seed: int, device: torch.device) -> float:
    batch = next(epoch_batches(task, spec.batch_size, seed, 0)).to(device)
    value = float(task.loss(model(*batch.inputs), batch))
    if not math.isfinite(value):
        raise TrainingError(f"a trained network's loss must be finite, but it is {value}; lower the learning rate")
    return value
