"""Linear layers on a GPU as calls of the kernel: packed weights, offsets and sizes for a mask and a variant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.errors import CompileError
from pruneaug.kernels.cuda.formats import Format
from pruneaug.kernels.cuda.packing import PackedTiles, TileShape, pack_tiles
from pruneaug.kernels.cuda.shapes import COLUMNS, ROWS, ImageScalars, Scalars, Shape
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.cuda.variants import CudaVariant
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import Conv2dOp, LinearOp

ANY_COLUMNS = 1 << 30  # a block of so many columns is a dense layer
_NONE = np.zeros(1, np.int32)  # in place of an array that has no values


@dataclass(frozen=True, slots=True, eq=False)
class CudaCall:
    """A kernel with everything but its inputs and its output.

    The function takes flat arrays: x (and the residual), the constants, `scalars`, and y.
    """

    name: str  # what it computes, as a report shows it
    shape: Shape
    constants: dict[str, npt.NDArray[Any]]  # by the kernel's name of the argument, in its order
    scalars: Scalars | ImageScalars
    x_size: int  # values, the ends of rows included
    y_size: int

    @property
    def function(self) -> Any:
        """TIR; calls of equal shapes share it."""
        from pruneaug.kernels.cuda.spmm import cuda_spmm  # the compiler; a compiled kernel is called without it

        return cuda_spmm(self.shape)


def chunk_for(block_cols: int, variant: CudaVariant, form: Format) -> int:
    """How many columns are kept or removed together in the tiles of a layer with blocks of so many columns."""
    return math.gcd(block_cols, variant.columns(form)) if block_cols < variant.columns(form) else variant.columns(form)


def row_stride(values: int, form: Format) -> int:
    """The distance of rows of so many values, in values: whole pieces of 16 bytes."""
    return -(-values // form.per_piece) * form.per_piece


def linear_product(
    op: LinearOp,
    weights: Weights,
    block_cols: int,
    variant: CudaVariant,
    form: Format,
    layout: str,
    target: CudaTarget,
    epilogue: Epilogue,
) -> CudaCall:
    """A linear layer whose mask keeps or removes blocks of `block_cols` columns together (dense: ANY_COLUMNS).

    With layout "rows" x is [tokens, K] and y [tokens, N], with "columns" x is [K, tokens] and y [N, tokens]; rows lie
    `row_stride` values apart. A residual is laid out as y. Raises CompileError for what the kernel does not compute.
    """
    variant.check(target, form)
    if layout not in (ROWS, COLUMNS):
        raise CompileError(f"a layout must be 'rows' or 'columns', but got {layout!r}; choose one")
    if layout == COLUMNS and form.size != 2:
        raise CompileError(f"layout 'columns' needs values of 2 bytes, but got {form.name}; use layout 'rows' for it")
    outputs, inputs = weights.matrix.shape
    chunk = chunk_for(block_cols, variant, form)
    mask = mask_of(weights)
    tile = TileShape(variant.outputs, chunk, variant.columns(form), variant.together(form) if layout == ROWS else 0)
    packed = pack_tiles(weights.matrix, mask, tile, form)

    by_token = layout == ROWS
    x_stride = row_stride(inputs if by_token else op.tokens, form)
    y_stride = row_stride(outputs if by_token else op.tokens, form)
    x_size = (op.tokens if by_token else inputs) * x_stride
    y_size = (op.tokens if by_token else outputs) * y_stride
    # Kernels count in int32, and up to a tile further.
    most = max(x_size, y_size, packed.words.size) + (packed.padding + variant.tokens + variant.outputs) * x_stride
    check_countable(op, most)
    step = 1 if by_token else x_stride  # from a column of x to the next
    constants = packed_constants(packed, "offset", packed.columns * np.int32(step), weights, variant)
    scalars = Scalars(op.tokens, outputs, inputs * step, x_stride, y_stride, *epilogue.clamp)
    shape = Shape(form, variant, layout, chunk, epilogue.activation, epilogue.residual)
    return CudaCall(f"{form.name} product", shape, constants, scalars, x_size, y_size)


def mask_of(weights: Weights) -> torch.Tensor:
    """Which weights are kept, bool [N, K]: of a dense layer all."""
    return torch.ones_like(weights.matrix, dtype=torch.bool) if weights.mask is None else weights.mask


def check_countable(op: LinearOp | Conv2dOp, most: int) -> None:
    """Raises CompileError if a kernel, which counts in int32, would have to count to `most` for an op."""
    if most >= 2**31:
        raise CompileError(
            f"a layer must have fewer than 2**31 values of input, output and weights, but {op.key} needs {most}; "
            f"compile it for {'fewer tokens' if isinstance(op, LinearOp) else 'a smaller batch'}"
        )


def packed_constants(
    packed: PackedTiles, columns_name: str, columns: npt.NDArray[np.int32], weights: Weights, variant: CudaVariant
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a kernel, in the order of its arguments; `columns` says where the packed chunks read.

    A layer that keeps nothing still has arrays that are not empty.
    """
    return {
        "weight": packed.words if packed.words.size else _NONE.view(np.uint32),
        columns_name: columns if columns.size else _NONE,
        "indptr": packed.indptr,
        "bias": weights.padded_bias((len(packed.indptr) - 1) * variant.outputs),
    }
