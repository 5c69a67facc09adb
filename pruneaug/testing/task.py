"""A task that trains in a fraction of a second."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from pruneaug.errors import TaskError
from pruneaug.tasks.classification import ClassificationTask, Examples
from pruneaug.tasks.models.seeding import seeded
from pruneaug.tasks.protocol import Split

_CLASSES = 4
_SIZES: dict[Split, int] = {"train": 256, "validation": 128, "test": 128}


class ToyTask(ClassificationTask):
    """Four noisy patterns of 1 x 8 x 8 pixels, and a network of some thousand weights that tells them apart.

    network: `mlp`, three linear layers, or `cnn`, three convolutions with batch norm (two of them equal) and a linear
    layer. noise: standard deviation; after 10 epochs the `mlp` is always right at 1 and in some 80 of 100 cases at 3.
    A job uses it by the name `pruneaug.testing.task:ToyTask`.
    """

    def __init__(self, network: Literal["mlp", "cnn"] = "mlp", noise: float = 1.0, seed: int = 0) -> None:
        if network not in ("mlp", "cnn"):
            raise TaskError(f"the toy task's network must be 'mlp' or 'cnn', but got {network!r}")
        generator = torch.Generator().manual_seed(seed)
        patterns = torch.randn(_CLASSES, 1, 8, 8, generator=generator)
        splits = {split: _examples(patterns, size, noise, generator) for split, size in _SIZES.items()}
        super().__init__(f"toy-{network}", _mlp if network == "mlp" else _cnn, splits, _CLASSES)


def _examples(patterns: torch.Tensor, size: int, noise: float, generator: torch.Generator) -> Examples:
    """`size` samples, as many of each class: its pattern [1, 8, 8] plus noise."""
    targets = torch.arange(size) % len(patterns)
    pixels = patterns[targets] + noise * torch.randn(size, *patterns.shape[1:], generator=generator)
    return Examples((pixels,), targets)


def _mlp() -> nn.Module:
    with seeded(0):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, _CLASSES)
        )


def _cnn() -> nn.Module:
    def block(in_channels: int, out_channels: int) -> list[nn.Module]:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]

    with seeded(0):
        features = [*block(1, 16), *block(16, 16), *block(16, 16)]
        return nn.Sequential(*features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, _CLASSES))
