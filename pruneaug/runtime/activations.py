"""Activations: the tensors of a network as the buffers that hold them, in one layout or in several."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from pruneaug.kernels.planes import Planes
from pruneaug.runtime.steps import Source

CHANNELS_FIRST, CHANNELS_LAST = 1, -1


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in planes: its channels are dimension 1 (images) or the last one (tokens)."""

    buffer: Source
    planes: Planes
    channel_dim: int


@dataclass(slots=True, eq=False)
class Activation:
    """A tensor: contiguous in `plain`, in planes in `held`, or both. At least one of them is there.

    The dimensions beside the channels, in their order, are the images, rows and columns of the planes.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    plain: Source | None = None
    held: Held | None = None

    @property
    def channels(self) -> int:
        """Of a tensor in planes, or one that would be tokens."""
        return self.shape[self.held.channel_dim if self.held is not None else CHANNELS_LAST]

    def viewed(self, shape: tuple[int, ...]) -> Activation | None:
        """The same values in the same order as a tensor of another shape; None where the planes would not follow."""
        held = self.held
        if held is not None and not _follows(self.shape, shape, held.channel_dim):
            held = None
        if held is None and self.plain is None:
            return None
        return Activation(shape, self.dtype, self.plain, held)

    def moved(self, source: int, target: int) -> Activation | None:
        """The tensor with its channels moved to the other end: the same planes read otherwise."""
        held = self.held
        if held is None or len(self.shape) < 3:
            return None
        if held.channel_dim == CHANNELS_FIRST and source == 1 and target == len(self.shape) - 1:
            shape = (self.shape[0], *self.shape[2:], self.shape[1])
            return Activation(shape, self.dtype, None, replace(held, channel_dim=CHANNELS_LAST))
        if held.channel_dim == CHANNELS_LAST and source == len(self.shape) - 1 and target == 1:
            # Channels first means one dimension of images: more than that cannot be told apart from rows.
            if self.shape[0] != held.planes.images:
                return None
            shape = (self.shape[0], self.shape[-1], *self.shape[1:-1])
            return Activation(shape, self.dtype, None, replace(held, channel_dim=CHANNELS_FIRST))
        return None


def _follows(old: tuple[int, ...], new: tuple[int, ...], channel_dim: int) -> bool:
    """Whether a view leaves the channels alone."""
    if channel_dim == CHANNELS_LAST:
        return len(new) >= 2 and new[-1] == old[-1]
    same_front = len(new) >= 2 and new[:2] == old[:2]
    return same_front and math.prod(new[2:]) == math.prod(old[2:])
