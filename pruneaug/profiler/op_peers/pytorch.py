"""Dense layers by PyTorch's operators. What a call of one costs is part of its time: PyTorch calls each from Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import cycle

import torch
import torch.nn.functional as F

from pruneaug.errors import MeasurementError
from pruneaug.kernels.cold import cold_copies
from pruneaug.kernels.lowp.formats import quantize_rows
from pruneaug.network.ops import LinearOp
from pruneaug.profiler.op_peers.layer import DenseLayer, PeerCall


def float32(layer: DenseLayer) -> PeerCall:
    """Its operators on contiguous tensors."""
    return _operator(layer, torch.float32, torch.contiguous_format)


def bfloat16(layer: DenseLayer) -> PeerCall:
    """Its operators on bfloat16 tensors, those of images with their channels last."""
    return _operator(layer, torch.bfloat16, torch.channels_last)


def int8(layer: DenseLayer) -> PeerCall:
    """Its quantised operators, by oneDNN. Raises MeasurementError for an image that is padded unevenly."""
    if "onednn" in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = "onednn"
    op, y = layer.op, layer.y_affine
    q, scale = quantize_rows(layer.matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated, and PyTorch has no other int8 on CPUs
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        weight = torch.quantize_per_channel(
            layer.weight(q.double() * scale[:, None]).float(), scale, zeros, 0, torch.qint8
        )
        x = torch.quantize_per_tensor(layer.x, layer.x_affine.scale, layer.x_affine.zero_point, torch.quint8)
    operators = torch.ops.quantized
    turns = range(cold_copies(q.nbytes))
    if isinstance(op, LinearOp):
        packed = cycle([operators.linear_prepack(weight, layer.bias) for _ in turns])
        return PeerCall(lambda: operators.linear(x, next(packed), y.scale, y.zero_point), _dequantized)
    top, left, bottom, right = op.padding
    if (top, left) != (bottom, right):
        raise MeasurementError(f"PyTorch pads both sides of an image alike in int8, but got {op.key}")
    x = x.contiguous(memory_format=torch.channels_last)
    packed = cycle(
        [operators.conv2d_prepack(weight, layer.bias, op.stride, (top, left), op.dilation, 1) for _ in turns]
    )
    return PeerCall(lambda: operators.conv2d(x, next(packed), y.scale, y.zero_point), _dequantized)


def _operator(layer: DenseLayer, dtype: torch.dtype, images: torch.memory_format) -> PeerCall:
    """A layer in `dtype`, its images in the order `images`. An image that is padded unevenly is padded first."""
    op, x, bias = layer.op, layer.x.to(dtype), layer.bias.to(dtype)
    weight = layer.weight(layer.matrix).to(dtype)
    if isinstance(op, LinearOp):
        weights = _in_turn(weight)
        return PeerCall(lambda: F.linear(x, next(weights), bias), torch.Tensor.double)
    x, weights = x.to(memory_format=images), _in_turn(weight.to(memory_format=images))
    top, left, bottom, right = op.padding
    even = (top, left) == (bottom, right)

    def run() -> torch.Tensor:
        padded = x if even else F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, next(weights), bias, op.stride, (top, left) if even else 0, op.dilation, op.groups)

    return PeerCall(run, torch.Tensor.double)


def _in_turn(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    return cycle([weight.clone() for _ in range(cold_copies(weight.nbytes))])


def _dequantized(y: torch.Tensor) -> torch.Tensor:
    return y.dequantize().double()
