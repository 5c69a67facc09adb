"""Tensors to planes and back, by PyTorch's strided views; kernel calls run and checked."""

import functools
import math

import torch

from pruneaug.kernels.build import Builder, CpuTarget


def to_planes(x, planes, border=0.0):
    """Flat float32 memory that holds x [images, channels, rows, cols] or [images, tokens, channels], else `border`."""
    flat = torch.full((planes.size,), border)
    _view(flat, planes).copy_(x if x.dim() == 4 else x.transpose(1, 2)[:, :, None])
    return flat


def from_planes(flat, planes):
    """What `to_planes` was given: [images, channels, rows, cols], or [images, tokens, channels] of token planes."""
    assert flat.dtype == torch.float32
    assert flat.numel() >= planes.size  # a product may write more rows than it has channels
    values = _view(flat, planes).clone()
    return values if planes.zero_border else values[:, :, 0].transpose(1, 2).contiguous()


def border_of(flat, planes):
    """The values of flat planes that belong to no position of an image: float32 [n]."""
    inside = torch.zeros(planes.size, dtype=torch.bool)
    _view(inside, planes).fill_(True)
    return flat[~inside]


@functools.cache
def builder_for(lanes):
    """A builder for vectors of `lanes` values, whatever the machine's are."""
    return Builder(CpuTarget(lanes, 32 if lanes == 16 else 16, 2))


def run(call, lanes, *inputs):
    """What the call writes into memory full of NaN."""
    y = torch.full((call.size,), math.nan)
    builder_for(lanes).bound(call)(*inputs, y)
    return y


def assert_planes(flat, planes, want):
    """The planes hold `want` float64 but for a relative error of 1e-5, and zeros between where they must."""
    assert_near(from_planes(flat, planes), want)
    if planes.zero_border:
        assert not border_of(flat, planes).any()  # NaN counts as true


def assert_near(got, want):
    """`got` float32 is `want` float64 but for a relative error of 1e-5; NaN and infinities are where they are there."""
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    finite = want.isfinite()
    assert torch.equal(got.isfinite(), finite)
    torch.testing.assert_close(got[~finite].double(), want[~finite], rtol=0, atol=0, equal_nan=True)
    assert (got.double() - want)[finite].norm() <= 1e-5 * want[finite].norm()


def _view(flat, planes):
    return flat.as_strided(
        (planes.images, planes.channels, planes.rows, planes.cols),
        (planes.image_stride, planes.channel_stride, planes.pitch, 1),
        planes.lead,
    )
