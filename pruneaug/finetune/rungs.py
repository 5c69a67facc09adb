"""Trainings that are looked at on their way, and that go on where they were interrupted."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pruneaug.finetune.checkpoint import (
    TrainState,
    load_state,
    model_tensors,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
    save_state,
    training_digest,
)
from pruneaug.finetune.data import EndlessBatches
from pruneaug.finetune.held import HeldMasks
from pruneaug.finetune.protocol import Rung, Rungs
from pruneaug.finetune.schedule import Rate
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Task

_VERSION = 1  # of what a checkpoint holds
_RATES = 1000  # of the schedule, that tell one training from another
_STORE_EVERY_S = 60.0  # what a kill costs at most, where storing is quick
_STORE_SHARE = 0.02  # of a training's time that storing it may take


class Stops:
    """Where one training stops on its way: to be judged at its rungs, and there and from time to time to be stored.

    `rungs` None: it is neither judged nor stored.
    """

    def __init__(
        self,
        rungs: Rungs | None,
        model: nn.Module,
        pruned: Pruned | None,
        held: HeldMasks,
        optimizer: torch.optim.Optimizer,
        batches: EndlessBatches,
        total: int,
        epoch_steps: int,
    ) -> None:
        self._model, self._pruned, self._held = model, pruned, held
        self._optimizer, self._batches = optimizer, batches
        self._total, self._epoch_steps = total, epoch_steps
        self._rungs = rungs or Rungs(())
        self._steps = {max(1, round(epochs * epoch_steps)) for epochs in self._rungs.epochs}
        hidden = pruned is not None and pruned.observe is not None and pruned.state is None
        self._path = None if hidden else self._rungs.checkpoint
        self._training = ""
        self._stored_at, self._storing_s = time.monotonic(), 0.0

    def resume(self, task: Task, spec: TrainSpec, rate: Rate, seed: int) -> tuple[int, float, bool]:
        """(steps done, the last loss, whether the judge ends it here), of the checkpoint or of a new training."""
        if self._path is None:
            return 0, math.nan, False
        every = max(1, self._total // _RATES)
        facts = {
            "version": _VERSION,
            "task": task.name,
            "spec": spec.model_dump(mode="json"),
            "seed": seed,
            "rates": [rate(step, self._total) for step in range(0, self._total, every)],
            "network": [(name, list(tensor.shape)) for name, tensor in model_tensors(self._model).items()],
        }
        begins_with = [model_tensors(self._model), {} if self._pruned is None else self._pruned.masks]
        self._training = training_digest(facts, *begins_with)
        state = load_state(self._path, self._training)
        if state is None:
            return 0, math.nan, False
        self._restore(state)
        return state.step, state.loss, self._is_rung(state.step) and not self._judge(state.step)

    def is_at(self, step: int) -> bool:
        """Whether the training stops here; between rungs the clock says so, which changes nothing of its result."""
        return self._is_rung(step) or (step < self._total and self._is_worth_storing())

    def go_on(self, step: int, loss: float) -> bool:
        """Store the training and, at a rung, ask the judge."""
        if self._path is not None:
            began = time.monotonic()
            save_state(self._path, self._state(step, loss), self._training)
            self._stored_at = time.monotonic()
            self._storing_s = self._stored_at - began
        return not self._is_rung(step) or self._judge(step)

    def _is_rung(self, step: int) -> bool:
        return step in self._steps and step < self._total

    def _is_worth_storing(self) -> bool:
        if self._path is None:
            return False
        return time.monotonic() - self._stored_at >= max(_STORE_EVERY_S, self._storing_s / _STORE_SHARE)

    def _judge(self, step: int) -> bool:
        with _undisturbed(self._model):
            return self._rungs.judge(Rung(step / self._epoch_steps, step, self._model, self._held.on_cpu()))

    def _state(self, step: int, loss: float) -> TrainState:
        random = {"cpu": torch.get_rng_state(), "epoch": self._batches.random_state}
        device = next(self._model.parameters()).device
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        return TrainState(
            step=step,
            epoch=self._batches.epoch,
            taken=self._batches.taken,
            loss=loss,
            model=model_tensors(self._model),
            optimizer=optimizer_tensors(self._optimizer),
            masks=self._held.masks,
            pruner=(self._pruned.state if self._pruned is not None else None) or {},
            random=random,
        )

    def _restore(self, state: TrainState) -> None:
        restore_model(self._model, state.model)
        restore_optimizer(self._optimizer, state.optimizer)
        self._held.set(dict(state.masks))
        if self._pruned is not None and self._pruned.state is not None:
            for name, tensor in state.pruner.items():
                if name in self._pruned.state:
                    self._pruned.state[name].copy_(tensor)
                else:
                    self._pruned.state[name] = tensor.clone()
        self._batches.seek(state.epoch, state.taken, state.random["epoch"])
        torch.set_rng_state(state.random["cpu"])
        if "cuda" in state.random:
            torch.cuda.set_rng_state(state.random["cuda"], next(self._model.parameters()).device)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; parameters, buffers, modes and random state are as before afterwards."""
    tensors = list(model_tensors(model).values())
    kept = [tensor.detach().clone() for tensor in tensors]
    training = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module, flag in training.items():
                module.training = flag
            with torch.no_grad():
                for tensor, value in zip(tensors, kept):
                    tensor.copy_(value)
