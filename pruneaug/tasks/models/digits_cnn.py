"""A small convolutional network that spends its time in 3x3 convolutions, for trying pruneaug in minutes."""

from __future__ import annotations

from torch import nn

from pruneaug.tasks.models.seeding import seeded

_STAGES = ((32, 1), (64, 1), (128, 2), (128, 1), (128, 1), (256, 2), (256, 1))  # (out channels, stride)


def digits_cnn(num_classes: int = 10, in_channels: int = 1, seed: int = 0) -> nn.Sequential:
    """Seven convolutions (3x3, batch norm, ReLU), a global average and a linear layer.

    [batch, in_channels, 32, 32] -> [batch, num_classes], 170 million multiply-accumulates a sample.
    """
    with seeded(seed):
        layers: list[nn.Module] = []
        channels = in_channels
        for out_channels, stride in _STAGES:
            layers += [
                nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            channels = out_channels
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
