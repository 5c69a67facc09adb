"""VGG-16: for ImageNet, and with batch norm for 32x32 images (Simonyan and Zisserman, arXiv:1409.1556)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruneaug.tasks.models.seeding import seeded

_POOL = 0  # in place of a number of channels
_CHANNELS = (64, 64, _POOL, 128, 128, _POOL, *(256,) * 3, _POOL, *(512,) * 3, _POOL, *(512,) * 3, _POOL)


class VGG16(nn.Module):
    """Parameter names are torchvision's, so its checkpoints load."""

    def __init__(self, features: nn.Sequential, pooled_size: int, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(pooled_size)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits


def vgg16(num_classes: int = 10, in_channels: int = 3, seed: int = 0) -> VGG16:
    """[batch, in_channels, 32, 32] -> [batch, num_classes], 313 million multiply-accumulates a sample.

    Batch norm after every convolution and one linear layer, as is usual for CIFAR.
    """
    with seeded(seed):
        return VGG16(_features(in_channels, batch_norm=True), 1, nn.Linear(512, num_classes))


def vgg16_224(num_classes: int = 1000, in_channels: int = 3, seed: int = 0) -> VGG16:
    """[batch, in_channels, 224, 224] -> [batch, num_classes], 15.5 billion multiply-accumulates a sample."""
    with seeded(seed):
        features = _features(in_channels, batch_norm=False)
        classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )
        return VGG16(features, 7, classifier)


def _features(in_channels: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = in_channels
    for out_channels in _CHANNELS:
        if out_channels == _POOL:
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=not batch_norm)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers.append(convolution)
        if batch_norm:
            layers.append(nn.BatchNorm2d(out_channels))
        layers.append(nn.ReLU())
        channels = out_channels
    return nn.Sequential(*layers)
