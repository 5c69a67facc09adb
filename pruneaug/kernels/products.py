"""The products of a network: linear layers and convolutions as kernel calls, packed for a mask and a variant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pruneaug.errors import CompileError
from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.gemv import gemv
from pruneaug.kernels.layouts import taps
from pruneaug.kernels.planes import Planes, inside
from pruneaug.kernels.row_spmm import OFFSETS_AHEAD, image_tiles, row_spmm
from pruneaug.kernels.spmm import spmm
from pruneaug.kernels.variants import Variant
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import Conv2dOp
from pruneaug.sparsity.packing import PackedColumns

PRODUCTS = ("vector product", "product", "convolution")
"""Names of the calls that this module makes, for a token, for tokens and for images."""

_NEAR = 1 << 18  # values of an input that stays in the second cache, a megabyte
_FEW = 1 << 15  # weights that stay in the first caches of the cores that share them, 128 KB
_NONE = np.zeros(1, np.float32)  # in place of an array that a kernel does not read


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
    offsets = checked_offsets(channel_offsets(x)[packed.columns])
    return _planes_product(PRODUCTS[1], x, y, packed, offsets, weights, variant, target, epilogue)


def conv_product(
    op: Conv2dOp, x: Planes, y: Planes, weights: Weights, variant: Variant, target: CpuTarget, epilogue: Epilogue
) -> KernelCall:
    """A convolution: image planes (and a residual laid out as `y`) -> image planes.

    `x` is its input, or the copy of its phase images, with rows as far apart as those of `y`. A variant with rows as
    lanes takes the input itself, whatever the stride. Raises CompileError if the rows of a group of `variant` lie in
    several groups of the convolution.
    """
    channels = op.in_channels // op.groups
    offsets = _input_offsets(op, x) if variant.positions else phase_offsets(op, x, y)
    packed = by_channel(weights.pack(variant.height), channels, len(weights.matrix[0]) // channels)
    column_offsets = offsets[packed.columns]
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
        PRODUCTS[2], x, y, packed, checked_offsets(column_offsets), weights, variant, target, epilogue, op.stride
    )


def channel_offsets(x: Planes) -> npt.NDArray[np.int64]:
    """Where each column of a linear layer's weight matrix reads in the tokens `x`, for the first position."""
    return np.arange(x.channels, dtype=np.int64) * x.channel_stride + x.lead


def phase_offsets(op: Conv2dOp, x: Planes, y: Planes) -> npt.NDArray[np.int64]:
    """Where each column of the weight matrix reads in the phase images `x`, for the first position."""
    if x.pitch != y.pitch:
        raise CompileError(f"a convolution's input needs rows {y.pitch} apart, but got {x.pitch}; report this bug")
    reads = taps(op)
    phase = {phase: index for index, phase in enumerate(reads.phases)}
    offsets = [
        (phase[phase_y, phase_x] * op.in_channels + channel) * x.channel_stride + shift_y * x.pitch + shift_x + x.lead
        for phase_y, shift_y in reads.rows
        for phase_x, shift_x in reads.cols
        for channel in range(op.in_channels // op.groups)
    ]
    return np.asarray(offsets, np.int64)


def _input_offsets(op: Conv2dOp, x: Planes) -> npt.NDArray[np.int64]:
    """Where each column of the weight matrix reads in the input `x`, for the first position."""
    top, left, _, _ = op.padding
    offsets = [
        channel * x.channel_stride + (k_y * op.dilation[0] - top) * x.pitch + k_x * op.dilation[1] - left + x.lead
        for k_y in range(op.kernel[0])
        for k_x in range(op.kernel[1])
        for channel in range(op.in_channels // op.groups)
    ]
    return np.asarray(offsets, np.int64)


def by_channel(packed: PackedColumns, channels: int, taps: int) -> PackedColumns:
    """The columns of each group in another order: those of one input channel together, which share cache lines."""
    if taps == 1:
        return packed
    group = np.repeat(np.arange(len(packed.indptr) - 1), np.diff(packed.indptr))
    order = np.lexsort((packed.columns // channels, packed.columns % channels, group))
    return replace(packed, values=packed.values[order], columns=packed.columns[order])


def runs(planes: Planes, lanes: int) -> tuple[int, int]:
    """How many runs of positions a kernel computes, and how many positions are in each: whole vectors.

    An image is a run; images with nothing between them are one.
    """
    positions = -(-planes.positions // lanes) * lanes
    if not planes.zero_border and planes.image_stride == positions:
        return 1, planes.images * positions
    return planes.images, positions


def sizes_of(x: Planes, y: Planes, lanes: int, splits: int) -> list[int]:
    """What kernels whose lanes are positions read of them (see `pruneaug.kernels.positions`)."""
    return [*runs(y, lanes), x.image_stride, y.image_stride, y.channel_stride, y.lead, splits]


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
    stride: tuple[int, int] = (1, 1),
) -> KernelCall:
    arrays = _arrays(packed, offsets, weights, variant, epilogue)
    rows = variant.height * (len(packed.indptr) - 1)
    size = max(rows, y.channels) * y.channel_stride
    if variant.positions:
        tiles = image_tiles(y, variant.positions, stride[0] * x.pitch, stride[1], target.lanes)
        function = row_spmm(
            variant.height, tiles, target.lanes, epilogue.activation, epilogue.residual, y.zero_border
        )  # fmt: skip
        # Work that is not divided by rows of the matrix is divided by rows of the image.
        bands = target.threads if variant.splits == 1 else 1
        strides = (x.image_stride, y.image_stride, y.channel_stride, y.lead)
        sizes = np.array([y.images, *strides, variant.splits, bands], np.int32)
        return KernelCall(name, function, (*_dummy(epilogue), *arrays, sizes), size)
    _, positions = runs(y, target.lanes)
    sizes = np.array(sizes_of(x, y, target.lanes, variant.splits), np.int32)
    kept = inside(y, positions).astype(np.float32) if y.zero_border else _NONE
    function = spmm(
        variant.height,
        variant.vectors,
        positions // target.lanes % variant.vectors,
        target.lanes,
        epilogue.activation,
        epilogue.residual,
        y.zero_border,
        far=x.size > _NEAR,
        many=packed.values.size > _FEW,
    )
    return KernelCall(name, function, (*_dummy(epilogue), *arrays, sizes, kept), size)


def _arrays(
    packed: PackedColumns, offsets: npt.NDArray[np.int32], weights: Weights, variant: Variant, epilogue: Epilogue
) -> tuple[npt.NDArray[np.generic], ...]:
    """weight, offset, indptr, bias, split, bounds; a layer that keeps nothing still has arrays that are not empty."""
    rows = variant.height * (len(packed.indptr) - 1)
    return (
        packed.values.reshape(-1) if packed.values.size else _NONE,
        np.append(offsets, np.zeros(OFFSETS_AHEAD, np.int32)),
        packed.indptr,
        weights.padded_bias(rows),
        balanced_splits(packed.indptr, variant.splits),
        np.array(epilogue.clamp, np.float32),
    )


def _dummy(epilogue: Epilogue) -> tuple[npt.NDArray[np.float32], ...]:
    return () if epilogue.residual else (_NONE,)


def checked_offsets(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    if offsets.size and offsets.max() >= 2**31:
        raise CompileError(
            f"an activation must have fewer than 2**31 values, but a layer reads at {offsets.max()}; "
            "compile it for a smaller batch"
        )
    return offsets.astype(np.int32)


def balanced_splits(indptr: npt.NDArray[np.int32], splits: int, tile_columns: int = 1) -> npt.NDArray[np.int32]:
    """Row groups at which `splits` tasks of about equal numbers of columns begin, and the end: int32 [splits + 1]."""
    # Storing a group's tile takes about as long as `tile_columns` of its columns.
    work = indptr.astype(np.int64) + tile_columns * np.arange(len(indptr))
    wanted = np.arange(splits + 1) * work[-1] / splits
    after = np.clip(np.searchsorted(work, wanted), 1, len(indptr) - 1)
    # The nearer of the two groups that it lies between.
    bounds = after - (wanted - work[after - 1] < work[after] - wanted)
    bounds[0], bounds[-1] = 0, len(indptr) - 1
    return np.ascontiguousarray(np.maximum.accumulate(bounds).astype(np.int32))
