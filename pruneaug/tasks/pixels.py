"""From stored pixels to what a network sees: augmentation and normalisation, over a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pruneaug.tasks.classification import Inputs

Augmentation = Callable[[Inputs, torch.Generator], Inputs]


@dataclass(frozen=True, slots=True)
class CropAndFlip:
    """Shifts every image by up to `pad` pixels on each axis, zeros moving in, and mirrors half of them if `flip`."""

    pad: int
    flip: bool

    def __call__(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        (images,) = inputs  # [batch, channels, height, width]
        batch, channels, height, width = images.shape
        padded = F.pad(images, (self.pad,) * 4)
        top, left = torch.randint(0, 2 * self.pad + 1, (2, batch, 1), generator=generator)
        rows = top + torch.arange(height)  # [batch, height]
        cols = left + torch.arange(width)  # [batch, width]
        if self.flip:
            mirrored = torch.rand((batch, 1), generator=generator) < 0.5
            cols = torch.where(mirrored, cols.flip(1), cols)
        sample = torch.arange(batch)[:, None, None, None]
        channel = torch.arange(channels)[None, :, None, None]
        return (padded[sample, channel, rows[:, None, :, None], cols[:, None, None, :]],)


@dataclass(frozen=True, slots=True)
class Erase:
    """Blackens a square of `size` pixels a side around a random pixel of every image, as far as it lies in it.

    DeVries and Taylor 2017, Improved Regularization of Convolutional Neural Networks with Cutout.
    """

    size: int

    def __call__(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        (images,) = inputs  # [batch, channels, height, width]
        batch, _, height, width = images.shape
        first_row = torch.randint(height, (batch, 1), generator=generator) - self.size // 2
        first_col = torch.randint(width, (batch, 1), generator=generator) - self.size // 2
        in_rows = (torch.arange(height) >= first_row) & (torch.arange(height) < first_row + self.size)
        in_cols = (torch.arange(width) >= first_col) & (torch.arange(width) < first_col + self.size)
        return (images.masked_fill((in_rows[:, :, None] & in_cols[:, None, :])[:, None], 0),)


@dataclass(frozen=True, slots=True)
class InTurn:
    """Several augmentations, one after the other."""

    steps: tuple[Augmentation, ...]

    def __call__(self, inputs: Inputs, generator: torch.Generator) -> Inputs:
        for step in self.steps:
            inputs = step(inputs, generator)
        return inputs


@dataclass(frozen=True, slots=True)
class Normalise:
    """Pixels 0..255 -> (pixel / 255 - mean) / deviation in float32, by channel."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, inputs: Inputs) -> Inputs:
        (images,) = inputs
        mean = torch.tensor(self.mean)[:, None, None]
        scale = 1 / torch.tensor(self.deviation)[:, None, None]
        return ((images.float() / 255 - mean) * scale,)

    @classmethod
    def of(cls, images: Tensor) -> Normalise:
        """The one that gives these images [samples, channels, height, width] mean 0 and deviation 1."""
        values = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
        share = counts / counts.sum(1, keepdim=True)  # [channels, 256]
        mean = share @ values
        variance = (share * (values - mean[:, None]) ** 2).sum(1)
        deviation = variance.sqrt().clamp_min(1e-3)  # a channel of one colour must not divide by zero
        return cls(tuple(mean.tolist()), tuple(deviation.tolist()))
