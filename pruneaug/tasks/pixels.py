"""From stored pixels to what a network sees: augmentation and normalisation, over a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pruneaug.tasks.classification import Inputs


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
