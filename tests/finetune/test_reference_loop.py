"""The loop against one that is written out with nothing but PyTorch's gradients."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pruneaug.finetune.train import Train
from pruneaug.network.layers import apply_masks
from pruneaug.pruners.protocol import Pruned
from pruneaug.spec.models import TrainSpec

MASKS = {"3": torch.rand(8, 8, 3, 3, generator=torch.Generator().manual_seed(5)) > 0.5}


def reference(model: nn.Module, teacher: nn.Module | None, task: Any, spec: TrainSpec, seed: int) -> None:
    """SGD with Nesterov momentum by hand: six steps an epoch, warm-up and cosine, masks after each step."""
    total, warmup = round(6 * spec.epochs), round(6 * spec.epochs * spec.warmup)
    velocity = [torch.zeros_like(parameter) for parameter in model.parameters()]
    apply_masks(model, MASKS)
    for step in range(total):
        batch = list(task.batches("train", 16, seed * 100_003 + step // 6))[step % 6]
        (x,), y = batch.inputs, batch.targets
        features, outputs = {}, {}
        for which, network in (("student", model), ("teacher", teacher)):
            if network is not None:
                middle = network[:3](x)
                end = network[3:5](middle)
                features[which], outputs[which] = (middle, end), network[5:](end)
        loss = functional.cross_entropy(outputs["student"], y, label_smoothing=spec.label_smoothing)
        if teacher is not None:
            p = (outputs["teacher"].detach() / 2).softmax(1)
            q = (outputs["student"] / 2).softmax(1)
            divergence = 4 * (p * (p / q).log()).sum(1).mean()
            errors = [
                ((s - t.detach()) ** 2).sum() / (t.detach() ** 2).sum()
                for s, t in zip(features["student"], features["teacher"], strict=True)
            ]
            loss = (1 - spec.distillation) * loss + spec.distillation * divergence
            loss = loss + spec.feature_distillation * sum(errors) / 2
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        if step < warmup:
            rate = spec.learning_rate * (step + 1) / (warmup + 1)
        else:
            rate = spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        with torch.no_grad():
            for parameter, gradient, speed in zip(model.parameters(), gradients, velocity, strict=True):
                decayed = gradient + (spec.weight_decay if parameter.dim() > 1 else 0.0) * parameter
                speed.mul_(spec.momentum).add_(decayed)
                parameter -= rate * (decayed + spec.momentum * speed)
            model[3].weight *= MASKS["3"]


def without_dropout(task: Any) -> nn.Module:
    model = task.build_model()
    model[6] = nn.Identity()
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"label_smoothing": 0.1, "warmup": 0.25},
        {"distillation": 0.4},
        {"feature_distillation": 0.7, "feature_layers": ["[24]"]},
        {"distillation": 0.4, "feature_distillation": 0.7},  # the stages found are the same layers
    ],
    ids=str,
)
def test_training_is_what_a_loop_by_hand_gives(task: Any, settings: dict[str, Any]) -> None:
    spec = TrainSpec(epochs=2, batch_size=16, learning_rate=0.02, **settings)
    teacher = without_dropout(task)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    teacher.eval()
    found, wanted = without_dropout(task), without_dropout(task).train()
    given = teacher if spec.needs_teacher else None
    Train().finetune(found, Pruned(MASKS), task, spec, seed=3, teacher=given)
    reference(wanted, given, task, spec, seed=3)
    for name, parameter in wanted.named_parameters():
        assert torch.allclose(found.state_dict()[name], parameter, atol=2e-5, rtol=1e-4), name
