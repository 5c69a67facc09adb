"""The products of a network: linear layers and convolutions as kernel calls, packed for a mask and a variant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.errors import CompileError
from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.gemv import gemv
from pruneaug.kernels.layouts import taps
from pruneaug.kernels.planes import Planes
from pruneaug.kernels.spmm import spmm
from pruneaug.kernels.variants import Variant
from pruneaug.network.ops import Conv2dOp
from pruneaug.sparsity.packing import PackedColumns, pack_columns

Clamp = tuple[float, float]
NO_CLAMP: Clamp = (-math.inf, math.inf)
RELU: Clamp = (0.0, math.inf)
PRODUCTS = ("vector product", "product", "convolution")
"""Names of the calls that this module makes, for a token, for tokens and for images."""

_NONE = np.zeros(1, np.float32)  # in place of an array that a kernel does not read


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What a product does with a sum before it is stored: clamp(activation(sum + residual))."""

    activation: str = "none"
    clamp: Clamp = NO_CLAMP
    residual: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A layer's weight matrix float32 [N, K], its mask bool [N, K] (None: dense), and its bias float32 [N] or None."""

    matrix: torch.Tensor
    mask: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def pack(self, height: int) -> PackedColumns:
        mask = torch.ones_like(self.matrix, dtype=torch.bool) if self.mask is None else self.mask
        return pack_columns(self.matrix, mask, height)

    def padded_bias(self, rows: int) -> npt.NDArray[np.float32]:
        bias = np.zeros(rows, np.float32)
        if self.bias is not None:
            bias[: len(self.matrix)] = self.bias.detach().float().numpy()
        return bias


def vector_product(weights: Weights, variant: Variant, target: CpuTarget, epilogue: Epilogue) -> KernelCall:
    """A linear layer for one token: plain float32 [K] (and a residual [N]) -> [N].

    Raises CompileError if the height of `variant` does not divide N, or is no power of two.
    """
    rows = len(weights.matrix)
    if rows % variant.height or variant.height & (variant.height - 1):
        raise CompileError(
            f"a variant for one token must have a height that is a power of two and divides the {rows} outputs of the "
            f"layer, but got {variant}; choose another height"
        )
    packed = weights.pack(variant.height)
    arrays = _arrays(packed, packed.columns, weights, variant, epilogue)
    function = gemv(variant.height, target.lanes, epilogue.activation, epilogue.residual)
    return KernelCall(PRODUCTS[0], function, (*_dummy(epilogue), *arrays), rows)


def token_product(
    x: Planes, y: Planes, weights: Weights, variant: Variant, target: CpuTarget, epilogue: Epilogue
) -> KernelCall:
    """A linear layer: planes of K channels (and a residual laid out as `y`) -> planes of N channels.

    `y` differs from `x` only in its channels: both are tokens, or images whose positions are the tokens.
    """
    packed = weights.pack(variant.height)
    offsets = _checked_offsets(packed.columns.astype(np.int64) * x.channel_stride + x.lead)
    return _planes_product(PRODUCTS[1], x, y, packed, offsets, weights, variant, target, epilogue)


def conv_product(
    op: Conv2dOp, x: Planes, y: Planes, weights: Weights, variant: Variant, target: CpuTarget, epilogue: Epilogue
) -> KernelCall:
    """A convolution: image planes (and a residual laid out as `y`) -> image planes.

    `x` is its input, or the copy of its phase images, with rows as far apart as those of `y`. Raises CompileError if
    the rows of a group of `variant` lie in several groups of the convolution.
    """
    if x.pitch != y.pitch:
        raise CompileError(f"a convolution's input needs rows {y.pitch} apart, but got {x.pitch}; report this bug")
    packed = weights.pack(variant.height)
    reads = taps(op)
    phase = {phase: index for index, phase in enumerate(reads.phases)}
    channels = op.in_channels // op.groups
    offsets = [
        (phase[phase_y, phase_x] * op.in_channels + channel) * x.channel_stride + shift_y * x.pitch + shift_x + x.lead
        for phase_y, shift_y in reads.rows
        for phase_x, shift_x in reads.cols
        for channel in range(channels)
    ]
    column_offsets = np.asarray(offsets, np.int64)[packed.columns]
    if op.groups > 1:
        if op.out_channels // op.groups % variant.height:
            raise CompileError(
                f"variant {variant} must divide the {op.out_channels // op.groups} output channels of a group of "
                f"{op.key}; choose another height"
            )
        row_group = np.repeat(np.arange(len(packed.indptr) - 1), np.diff(packed.indptr))
        conv_group = row_group * variant.height // (op.out_channels // op.groups)
        column_offsets += conv_group * channels * x.channel_stride
    return _planes_product(
        PRODUCTS[2], x, y, packed, _checked_offsets(column_offsets), weights, variant, target, epilogue
    )


def runs(planes: Planes, lanes: int) -> tuple[int, int]:
    """How many runs of positions a kernel computes, and how many positions are in each: whole vectors.

    An image is a run; images with nothing between them are one.
    """
    positions = -(-planes.positions // lanes) * lanes
    if not planes.zero_border and planes.image_stride == positions:
        return 1, planes.images * positions
    return planes.images, positions


def _planes_product(
    name: str,
    x: Planes,
    y: Planes,
    packed: PackedColumns,
    offsets: npt.NDArray[np.int32],
    weights: Weights,
    variant: Variant,
    target: CpuTarget,
    epilogue: Epilogue,
) -> KernelCall:
    images, positions = runs(y, target.lanes)
    sizes = np.array(
        [images, positions, x.image_stride, y.image_stride, y.channel_stride, y.lead, variant.splits], np.int32
    )
    inside = _inside(y, positions) if y.zero_border else _NONE
    function = spmm(
        variant.height,
        variant.vectors,
        positions // target.lanes % variant.vectors,
        target.lanes,
        epilogue.activation,
        epilogue.residual,
        y.zero_border,
    )
    rows = variant.height * (len(packed.indptr) - 1)
    arrays = _arrays(packed, offsets, weights, variant, epilogue)
    return KernelCall(
        name, function, (*_dummy(epilogue), *arrays, sizes, inside), max(rows, y.channels) * y.channel_stride
    )


def _arrays(
    packed: PackedColumns, offsets: npt.NDArray[np.int32], weights: Weights, variant: Variant, epilogue: Epilogue
) -> tuple[npt.NDArray[np.generic], ...]:
    """weight, offset, indptr, bias, split, bounds; a layer that keeps nothing still has arrays that are not empty."""
    rows = variant.height * (len(packed.indptr) - 1)
    return (
        packed.values.reshape(-1) if packed.values.size else _NONE,
        offsets if offsets.size else np.zeros(1, np.int32),
        packed.indptr,
        weights.padded_bias(rows),
        _balanced_splits(packed.indptr, variant.splits),
        np.array(epilogue.clamp, np.float32),
    )


def _dummy(epilogue: Epilogue) -> tuple[npt.NDArray[np.float32], ...]:
    return () if epilogue.residual else (_NONE,)


def _inside(planes: Planes, positions: int) -> npt.NDArray[np.float32]:
    """1 at the positions that hold values, 0 between rows and behind the last one: float32 [positions]."""
    index = np.arange(positions)
    return ((index % planes.pitch < planes.cols) & (index < planes.positions)).astype(np.float32)


def _checked_offsets(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    if offsets.size and offsets.max() >= 2**31:
        raise CompileError(
            f"an activation must have fewer than 2**31 values, but a layer reads at {offsets.max()}; "
            "compile it for a smaller batch"
        )
    return offsets.astype(np.int32)


def _balanced_splits(indptr: npt.NDArray[np.int32], splits: int) -> npt.NDArray[np.int32]:
    """Row groups at which `splits` tasks of about equal numbers of columns begin, and the end: int32 [splits + 1]."""
    # One column's worth for every group: storing a tile costs too.
    work = indptr.astype(np.int64) + np.arange(len(indptr))
    bounds = np.searchsorted(work, np.arange(splits + 1) * work[-1] / splits)
    bounds[0], bounds[-1] = 0, len(indptr) - 1
    return np.ascontiguousarray(np.maximum.accumulate(bounds).astype(np.int32))
