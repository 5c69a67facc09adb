"""What a layer computes, by PyTorch in float64."""

import math

import torch
import torch.nn.functional as F

from pruneaug.network.ops import LinearOp


def random_layer(op, generator, *, density=0.5):
    """(input, weight matrix, mask, bias) of an op, all random; the mask is of single weights."""
    size = (op.tokens, op.in_features) if isinstance(op, LinearOp) else (op.batch, op.in_channels, op.height, op.width)
    matrix = torch.randn(op.matrix_shape, generator=generator)
    mask = torch.rand(op.matrix_shape, generator=generator) < density
    return torch.randn(size, generator=generator), matrix, mask, torch.randn(op.matrix_shape[0], generator=generator)


def expected(op, x, matrix, mask, bias, clamp=(-math.inf, math.inf)):
    """The op's result float64: weights off the mask are zero, then the bias is added, then the result clamped."""
    weight = torch.where(mask, matrix, 0.0).double()
    bias = None if bias is None else bias.double()
    if isinstance(op, LinearOp):
        y = F.linear(x.double(), weight, bias)
    else:
        top, left, bottom, right = op.padding
        kernel = weight.view(op.out_channels, *op.kernel, op.in_channels).permute(0, 3, 1, 2)
        y = F.conv2d(F.pad(x.double(), (left, right, top, bottom)), kernel, bias, op.stride, 0, op.dilation)
    return y.clamp(*clamp)


def assert_close(got, want):
    """`got` float32 is `want` float64 but for the rounding of sums of some hundred products."""
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4, equal_nan=True)
