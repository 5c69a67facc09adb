"""Plain training with masks held: of dense networks, and of pruned ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from pruneaug.errors import TrainingError
from pruneaug.finetune.data import EndlessBatches, steps_per_epoch, total_steps
from pruneaug.finetune.distillation import Distillation
from pruneaug.finetune.held import HeldMasks
from pruneaug.finetune.protocol import FineTuneResult, Progress, Rungs
from pruneaug.finetune.rungs import Stops
from pruneaug.finetune.schedule import Rate, learning_rate
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Batch, Task

_VECTOR = 16  # float32 of the widest CPU registers
_CUDA_CHECK_EVERY = 10  # steps between reads of the loss: each read waits for the GPU


class Train:
    """SGD with Nesterov momentum or AdamW, warm-up and cosine decay; optionally distils from the dense network."""

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
    ) -> FineTuneResult:
        return train(
            model,
            pruned,
            task,
            spec,
            partial(learning_rate, spec=spec),
            seed=seed,
            teacher=teacher,
            progress=progress,
            device=torch.device(device),
            rungs=rungs,
        )


def train(
    model: nn.Module,
    pruned: Pruned | None,
    task: Task,
    spec: TrainSpec,
    rate: Rate,
    *,
    seed: int,
    teacher: nn.Module | None,
    progress: Progress | None,
    device: torch.device,
    rungs: Rungs | None,
) -> FineTuneResult:
    """The loop behind `Train`: `spec` without its schedule, which `rate` is. See FineTuner.finetune and Rungs."""
    total = total_steps(task, spec.epochs, spec.batch_size)
    epoch_steps = steps_per_epoch(task.size("train"), spec.batch_size)
    check_every = _CUDA_CHECK_EVERY if device.type == "cuda" else 1
    with (
        _training(model, teacher, device, seed) as memory_format,
        Distillation(model, teacher, task, spec, device) as distillation,
    ):
        held = HeldMasks(model, pruned)
        optimizer = _optimizer(model, spec)
        batches = EndlessBatches(task, spec.batch_size, seed)
        stops = Stops(rungs, model, pruned, held, optimizer, batches, total, epoch_steps)
        step, loss_value, stopped = stops.resume(task, spec, rate, seed)
        while step < total and not stopped:
            held.revise(step, total)
            for group in optimizer.param_groups:
                group["lr"] = rate(step, total)
            batch = _place(next(batches), device, memory_format)
            loss = _loss(model, task, batch, spec, distillation, device)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            held.observe()
            optimizer.step()
            held.apply()
            step += 1
            is_stop = stops.is_at(step)
            if step % check_every == 0 or step == total or is_stop:
                loss_value = _finite(loss, step, total, spec)
                if progress is not None:
                    progress(step, total, loss_value)
            if is_stop:
                stopped = not stops.go_on(step, loss_value)
    return FineTuneResult(held.on_cpu(), step, step / epoch_steps, loss_value, stopped)


@contextmanager
def _training(
    model: nn.Module, teacher: nn.Module | None, device: torch.device, seed: int
) -> Iterator[torch.memory_format]:
    """The model on its device in train mode, its memory in the order yielded; afterwards eval and contiguous."""
    memory_format = _memory_format(model, device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        if teacher is not None:
            teacher.to(device).eval()
        _order_memory(model.to(device).train(), memory_format)
        try:
            yield memory_format
        finally:
            _order_memory(model.eval(), torch.contiguous_format)


def _memory_format(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Channels-last, which trains faster, but for networks whose gradients oneDNN would write past its memory.

    It does so for the weights of a strided 1x1 convolution with fewer input channels than a vector register holds
    (github.com/uxlfoundation/oneDNN/issues/6035). Removed channels leave such layers in residual networks.
    """
    fragile = device.type == "cpu" and any(
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
        and module.in_channels // module.groups < _VECTOR
        for module in model.modules()
    )
    return torch.contiguous_format if fragile else torch.channels_last


def _order_memory(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Only 2-d convolutions: `channels_last` is refused by the weights of 3-d ones."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=memory_format)  # type: ignore[call-overload]


def _loss(
    model: nn.Module, task: Task, batch: Batch, spec: TrainSpec, distillation: Distillation, device: torch.device
) -> torch.Tensor:
    mixed = device.type == "cuda" if spec.mixed_precision == "auto" else spec.mixed_precision
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
        output = model(*batch.inputs)
        loss = task.loss(output, batch, label_smoothing=spec.label_smoothing)
        return distillation.add(loss, output, batch)


def _optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """Weight decay acts on matrices and kernels only; on biases and norms it costs accuracy."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.learning_rate)
    return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=spec.momentum > 0)


def _place(batch: Batch, device: torch.device, memory_format: torch.memory_format) -> Batch:
    moved = batch.to(device)
    inputs = tuple(x.contiguous(memory_format=memory_format) if x.dim() == 4 else x for x in moved.inputs)
    return Batch(inputs, moved.targets)


def _finite(loss: torch.Tensor, step: int, total: int, spec: TrainSpec) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"a training loss must be finite, but it is {value} by step {step} of {total} with learning rate "
            f"{spec.learning_rate:g}; lower `learning_rate` (try {spec.learning_rate / 10:g}) or raise `warmup`"
        )
    return value
