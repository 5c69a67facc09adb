"""Planes: how kernels store activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class Planes:
    """An activation in flat memory, channel by channel; within a channel image by image.

    The value of image n, channel c, row y, column x is at

        c * channel_stride + n * image_stride + lead + y * pitch + x.

    An image's positions are contiguous, so a kernel computes along them in vectors, whatever the image's shape is. The
    memory between is the border: the columns cols..pitch-1 after each row, what comes before the first row and after
    the last. With `zero_border` it holds zeros, so a convolution reads its padding there; else its values are
    undefined, and no kept value may depend on them.

    Tokens [images, tokens, channels] are images of one row. Both strides and `lead` are multiples of a vector's lanes.
    """

    images: int
    channels: int
    rows: int
    cols: int
    pitch: int
    lead: int
    image_stride: int
    channel_stride: int
    zero_border: bool

    @property
    def positions(self) -> int:
        """From the first value of an image to behind its last, the border's columns between its rows included."""
        return (self.rows - 1) * self.pitch + self.cols

    @property
    def size(self) -> int:
        """Values of the whole activation, border included."""
        return self.channels * self.channel_stride


def token_planes(images: int, channels: int, tokens: int, lanes: int) -> Planes:
    """Planes for a tensor [images, tokens, channels]. Its border is undefined."""
    image_stride = _round_up(tokens, lanes)
    channel_stride = _spread(images * image_stride, lanes)
    return Planes(images, channels, 1, tokens, tokens, 0, image_stride, channel_stride, zero_border=False)


def image_planes(
    images: int, channels: int, rows: int, cols: int, lanes: int, *, pitch: int, before: int, after: int
) -> Planes:
    """Planes for a tensor [images, channels, rows, cols] with rows `pitch` apart inside a border of zeros.

    At least `before` values of border lie before the first position of an image, and `after` behind its last vector.
    """
    lead = _round_up(before, lanes)
    end = lead + _round_up((rows - 1) * pitch + cols, lanes)
    image_stride = _round_up(end + after, lanes)
    return Planes(
        images, channels, rows, cols, pitch, lead, image_stride, _spread(images * image_stride, lanes), zero_border=True
    )


def view(flat: torch.Tensor, planes: Planes) -> torch.Tensor:
    """The values [images, channels, rows, cols] in the flat memory of planes."""
    return flat.as_strided(
        (planes.images, planes.channels, planes.rows, planes.cols),
        (planes.image_stride, planes.channel_stride, planes.pitch, 1),
        planes.lead,
    )


def inside(planes: Planes, positions: int) -> npt.NDArray[np.bool_]:
    """Which of an image's first `positions` positions hold values, and do not lie between rows or behind the last."""
    index = np.arange(positions)
    return (index % planes.pitch < planes.cols) & (index < planes.positions)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _spread(size: int, lanes: int) -> int:
    """`size` rounded up to an odd number of vectors.

    Channels that lie a power of two apart would meet in few sets of the cache.
    """
    vectors = -(-size // lanes)
    return (vectors + (vectors % 2 == 0)) * lanes
