"""What a layer computes, by PyTorch in float64."""

import math

import torch
import torch.nn.functional as F

from pruneaug.network.ops import LinearOp

ACTIVATIONS = {"none": lambda y: y, "gelu": F.gelu, "sigmoid": torch.sigmoid, "hardswish": F.hardswish}


def random_layer(op, generator, *, density=0.5):
    """(input, weight matrix, mask, bias) of an op, all random; the mask is of single weights."""
    size = (op.tokens, op.in_features) if isinstance(op, LinearOp) else (op.batch, op.in_channels, op.height, op.width)
    matrix = torch.randn(op.matrix_shape, generator=generator)
    mask = torch.rand(op.matrix_shape, generator=generator) < density
    return torch.randn(size, generator=generator), matrix, mask, torch.randn(op.matrix_shape[0], generator=generator)


def output_size(op):
    return (op.tokens, op.out_features) if isinstance(op, LinearOp) else (op.batch, op.out_channels, *op.out_size)


def expected(op, x, matrix, mask, bias, clamp=(-math.inf, math.inf), activation="none", residual=None):
    """The op's result float64: weights off the mask are zero; then bias, residual, activation and clamp."""
    weight = torch.where(mask, matrix, 0.0).double()
    bias = None if bias is None else bias.double()
    if isinstance(op, LinearOp):
        y = F.linear(x.double(), weight, bias)
    else:
        top, left, bottom, right = op.padding
        kernel = weight.view(op.out_channels, *op.kernel, op.in_channels // op.groups).permute(0, 3, 1, 2)
        padded = F.pad(x.double(), (left, right, top, bottom))
        y = F.conv2d(padded, kernel, bias, op.stride, 0, op.dilation, op.groups)
    if residual is not None:
        y = y + residual.double()
    return ACTIVATIONS[activation](y).clamp(*clamp)
