"""Convolutions on a GPU as calls of the kernel, which multiplies a matrix that is never stored.

Row m of that matrix are the inputs of output position m, in the order of the weight matrix's columns: (ky, kx, input
channel). The channels of one tap follow each other there as they do in an image [height, width, channels], so that
chunks of them are copied as the chunks of a linear layer are.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pruneaug.errors import CompileError
from pruneaug.kernels.cuda.formats import Format
from pruneaug.kernels.cuda.packing import PackedTiles, TileShape, pack_tiles
from pruneaug.kernels.cuda.products import (
    CudaCall,
    check_countable,
    linear_product,
    mask_of,
    packed_constants,
    row_stride,
)
from pruneaug.kernels.cuda.shapes import ROWS, ImageScalars, Shape
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.cuda.variants import CudaVariant
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import Conv2dOp, LinearOp


def conv_product(
    op: Conv2dOp,
    weights: Weights,
    block_cols: int,
    variant: CudaVariant,
    form: Format,
    target: CudaTarget,
    epilogue: Epilogue,
) -> CudaCall:
    """A convolution whose mask keeps or removes blocks of `block_cols` columns together (dense: any large number).

    x is [batch, height, width, in channels] and y [batch, out height, out width, out channels], channels last; those of
    a position lie `row_stride` values from those of the next. A residual is laid out as y. One tap that reads each
    position once is a linear layer. Raises CompileError for what the kernel does not compute.
    """
    if op.groups != 1:
        raise CompileError(
            f"CUDA kernels compute convolutions of 1 group, but {op.key} has {op.groups}; leave this layer to another "
            "library"
        )
    mask = mask_of(weights)
    for what, values in (("weight matrix", weights.matrix), ("mask", mask)):
        if tuple(values.shape) != op.matrix_shape:
            raise CompileError(
                f"the {what} of {op.key} must have shape {list(op.matrix_shape)}, but got {list(values.shape)}; make "
                "it by weight_matrix from that of the layer"
            )
    if (linear := as_linear(op)) is not None:
        return linear_product(linear, weights, block_cols, variant, form, ROWS, target, epilogue)
    out_positions = op.out_size[0] * op.out_size[1]
    tokens = op.batch * out_positions
    variant.check(target, form)
    chunk = channel_chunk(op, block_cols, variant, form)
    x_stride, y_stride = row_stride(op.in_channels, form), row_stride(op.out_channels, form)
    channels = x_stride if chunk >= form.per_piece else op.in_channels
    tile = TileShape(variant.outputs, chunk, variant.columns(form), variant.together(form))
    packed = pack_tiles(_with_channels(op, weights.matrix, channels), _with_channels(op, mask, channels), tile, form)

    top, left, bottom, right = op.padding
    # Kernels count in int32, up to a tile further, and through the padding.
    reach = (op.height + top + bottom) * (op.width + left + right) * x_stride
    x_most = (op.batch + 1 + variant.tokens // out_positions) * reach
    y_most = (tokens + variant.tokens) * y_stride + variant.outputs
    check_countable(op, max(x_most, y_most, packed.words.size))
    constants = packed_constants(packed, "tap", _taps(op, packed, channels, x_stride), weights, variant)
    scalars = ImageScalars(
        tokens, op.out_channels, op.in_channels, x_stride, y_stride, *epilogue.clamp,
        op.height, op.width, out_positions, op.out_size[1], *op.stride, top, left,
    )  # fmt: skip
    shape = Shape(form, variant, ROWS, chunk, epilogue.activation, epilogue.residual, image=True)
    x_size = op.batch * op.height * op.width * x_stride
    return CudaCall(f"{form.name} convolution", shape, constants, scalars, x_size, tokens * y_stride)


def as_linear(op: Conv2dOp) -> LinearOp | None:
    """The linear layer that a convolution of one tap, which reads each position once, is; None for any other."""
    if op.kernel != (1, 1) or op.stride != (1, 1) or any(op.padding) or op.groups != 1:
        return None
    return LinearOp(op.batch * op.height * op.width, op.in_channels, op.out_channels)


def channel_chunk(op: Conv2dOp, block_cols: int, variant: CudaVariant, form: Format) -> int:
    """How many channels of a tap are kept or removed together in the tiles of a convolution.

    At least the 16 bytes that one instruction copies, unless blocks are narrower. Blocks that are not whole numbers of
    them in each tap then keep what lies in the same 16 bytes as well, as zeros. Large numbers stand for dense layers.
    """
    if block_cols >= op.matrix_shape[1]:
        return math.gcd(row_stride(op.in_channels, form), variant.columns(form))
    exact = math.gcd(block_cols, op.in_channels, variant.columns(form))
    return max(exact, form.per_piece) if block_cols >= form.per_piece else exact


def _with_channels(op: Conv2dOp, values: torch.Tensor, channels: int) -> torch.Tensor:
    """A weight matrix or mask [N, taps * in channels] as [N, taps * channels], filled up with zeros."""
    by_tap = values.reshape(op.out_channels, -1, op.in_channels)
    return F.pad(by_tap, (0, channels - op.in_channels)).reshape(op.out_channels, -1)


def _taps(op: Conv2dOp, packed: PackedTiles, channels: int, x_stride: int) -> npt.NDArray[np.int32]:
    """The numbers of a `Tap` for each chunk of a matrix with so many channels a tap, int32 [chunks * 4]."""
    tap, channel = np.divmod(packed.columns, np.int32(channels))
    down, right = tap // op.kernel[1] * op.dilation[0], tap % op.kernel[1] * op.dilation[1]
    offset = (down * op.width + right) * x_stride + channel
    taps = np.stack([offset, down, right, channel], axis=1)
    # What fills up a tile reads nothing: it begins behind the last channel, of a tap that lies in some images.
    taps[packed.columns == packed.padding] = 0, 0, 0, op.in_channels
    return np.ascontiguousarray(taps.reshape(-1), np.int32)
