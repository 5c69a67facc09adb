"""Plain training with masks held: of dense networks, and of pruned ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pruneaug.errors import SpecError, TaskError, TrainingError
from pruneaug.finetune.protocol import FineTuneResult, Progress
from pruneaug.network.layers import apply_masks, get_weight
from pruneaug.pruners.protocol import Masks, Pruned
from pruneaug.spec.models import TrainSpec
from pruneaug.tasks.protocol import Batch, Task

_REVISIONS = 100  # how often masks are revised in one training, if the pruner asks for it
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
    ) -> FineTuneResult:
        if spec.distillation > 0 and teacher is None:
            raise SpecError(
                f"distillation learns from the dense network, but there is none here (distillation="
                f"{spec.distillation:g}); set `distillation: 0` for the dense training"
            )
        device = torch.device(device)
        masks = {} if pruned is None else dict(pruned.masks)
        epoch_steps = _steps_per_epoch(task.size("train"), spec.batch_size)
        total = max(1, round(spec.epochs * epoch_steps))
        check_every = _CUDA_CHECK_EVERY if device.type == "cuda" else 1
        loss_value = math.nan
        with _training(model, teacher, device, seed):
            removed = _remove(model, masks)
            optimizer = _optimizer(model, spec)
            batches = _endless_batches(task, spec.batch_size, seed)
            for step in range(total):
                if pruned is not None and pruned.revise is not None and _is_revision(step, total):
                    masks = pruned.revise(model, step / (total - 1) if total > 1 else 1.0)
                    removed = _remove(model, masks)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, total, spec)
                batch = _place(next(batches), device)
                loss = _loss(model, teacher, task, batch, spec, device)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                _zero(removed)
                if (step + 1) % check_every == 0 or step + 1 == total:
                    loss_value = _finite(loss, step + 1, total, spec)
                    if progress is not None:
                        progress(step + 1, total, loss_value)
        return FineTuneResult(
            {name: mask.cpu() for name, mask in masks.items()}, total, total / epoch_steps, loss_value
        )


def learning_rate(step: int, total: int, spec: TrainSpec) -> float:
    """The learning rate of a step, counted from 0: a linear warm-up over its first part, then the schedule."""
    warmup = round(spec.warmup * total)
    if step < warmup:
        return spec.learning_rate * (step + 1) / (warmup + 1)
    if spec.schedule == "constant":
        return spec.learning_rate
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """temperature^2 * KL(teacher || student) of the softened classes, mean over the batch (Hinton et al., 2015).

    student, teacher: logits [batch, classes].
    """
    wanted = functional.log_softmax(teacher.float() / temperature, dim=-1)
    found = functional.log_softmax(student.float() / temperature, dim=-1)
    return temperature**2 * functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


@contextmanager
def _training(model: nn.Module, teacher: nn.Module | None, device: torch.device, seed: int) -> Iterator[None]:
    """The model on its device in train mode and channels-last; afterwards in eval mode and contiguous."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        if teacher is not None:
            teacher.to(device).eval()
        _order_memory(model.to(device).train(), torch.channels_last)
        try:
            yield
        finally:
            _order_memory(model.eval(), torch.contiguous_format)


def _order_memory(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Only 2-d convolutions: `channels_last` is refused by the weights of 3-d ones."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=memory_format)  # type: ignore[call-overload]


def _loss(
    model: nn.Module, teacher: nn.Module | None, task: Task, batch: Batch, spec: TrainSpec, device: torch.device
) -> torch.Tensor:
    mixed = device.type == "cuda" if spec.mixed_precision == "auto" else spec.mixed_precision
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
        output = model(*batch.inputs)
        loss = task.loss(output, batch, label_smoothing=spec.label_smoothing)
        if teacher is None or spec.distillation == 0:
            return loss
        with torch.no_grad():
            wanted = task.logits(teacher(*batch.inputs))
        distilled = distillation_loss(task.logits(output), wanted, spec.distillation_temperature)
    return (1 - spec.distillation) * loss + spec.distillation * distilled


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


def _steps_per_epoch(size: int, batch_size: int) -> int:
    full, rest = divmod(size, batch_size)
    return max(1, full + (rest > 1 or (rest == 1 and batch_size == 1)))


def _endless_batches(task: Task, batch_size: int, seed: int) -> Iterator[Batch]:
    """Batches of one epoch after the other, each shuffled anew.

    A left-over batch of a single sample is dropped: batch norm has no variance there.
    """
    epoch = 0
    while True:
        count = 0
        for batch in task.batches("train", batch_size, seed=seed * 100_003 + epoch):
            if len(batch) > 1 or batch_size == 1:
                count += 1
                yield batch
        if count == 0:
            raise TaskError(
                f"a training split must give at least one batch of two samples, but that of task {task.name!r} "
                f"gives none (size {task.size('train')}, batch_size {batch_size})"
            )
        epoch += 1


def _place(batch: Batch, device: torch.device) -> Batch:
    moved = batch.to(device)
    inputs = tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in moved.inputs)
    return Batch(inputs, moved.targets)


def _is_revision(step: int, total: int) -> bool:
    return step % max(1, total // _REVISIONS) == 0 or step == total - 1


def _finite(loss: torch.Tensor, step: int, total: int, spec: TrainSpec) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(
            f"a training loss must be finite, but it is {value} by step {step} of {total} with learning rate "
            f"{spec.learning_rate:g}; lower `learning_rate` (try {spec.learning_rate / 10:g}) or raise `warmup`"
        )
    return value


def _remove(model: nn.Module, masks: Masks) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Zero what the masks remove, and give what `_zero` needs to do so again: weights, and what to remove of them."""
    apply_masks(model, masks)
    weights = {name: get_weight(model, name) for name in masks}
    # In the weight's own memory order: mixed orders make the fill several times slower.
    return [
        (weight, torch.empty_like(weight, dtype=torch.bool).copy_(~masks[name])) for name, weight in weights.items()
    ]


@torch.no_grad()
def _zero(removed: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
    for weight, where in removed:
        weight.masked_fill_(where, 0.0)
