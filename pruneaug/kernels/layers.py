"""A layer bound to kernels: packed weights and buffers in, a callable on PyTorch tensors out."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.build import Builder
from pruneaug.kernels.variants import Variant, phase_size, positions
from pruneaug.network.ops import Conv2dOp, LinearOp, Op
from pruneaug.sparsity.packing import PackedColumns, pack_columns

Clamp = tuple[float, float]
NO_CLAMP: Clamp = (-math.inf, math.inf)
RELU: Clamp = (0.0, math.inf)

_SQUARE = 16  # edge of the squares that `transpose` moves: 16 x 16 float32 values fill sixteen cache lines


class _Product:
    """The packed weight matrix of one layer and the `spmm` kernel of its variant."""

    def __init__(
        self,
        packed: PackedColumns,
        offsets: npt.NDArray[np.int32],
        bias: torch.Tensor | None,
        rows: int,
        variant: Variant,
        builder: Builder,
        clamp: Clamp,
    ) -> None:
        groups = len(packed.indptr) - 1
        self.tile = variant.vectors * builder.target.lanes
        self.rows_padded = groups * variant.height
        self._run = builder.kernel("spmm", variant.height, variant.vectors, builder.target.lanes)
        # A layer that keeps nothing still needs arrays that are not empty.
        self._weight = torch.from_numpy(packed.values.reshape(-1) if packed.values.size else np.zeros(1, np.float32))
        self._offset = torch.from_numpy(offsets if offsets.size else np.zeros(1, np.int32))
        self._indptr = torch.from_numpy(packed.indptr)
        self._bias = torch.zeros(self.rows_padded)
        if bias is not None:
            self._bias[:rows] = bias.detach().float()
        self._split = torch.from_numpy(_balanced_splits(packed.indptr, variant.splits))
        self._clamp = clamp

    def __call__(self, x: torch.Tensor, y: torch.Tensor, batch: int, pixels: int, x_stride: int, y_stride: int) -> None:
        self._run(
            x, self._weight, self._offset, self._indptr, self._bias, self._split, y,
            batch, pixels, x_stride, y_stride, *self._clamp,
        )  # fmt: skip


class LinearKernel:
    """A linear layer for `op.tokens` tokens: float32 [..., in_features] -> [..., out_features]."""

    def __init__(
        self,
        op: LinearOp,
        matrix: torch.Tensor,
        mask: torch.Tensor,
        bias: torch.Tensor | None,
        variant: Variant,
        builder: Builder,
        clamp: Clamp = NO_CLAMP,
    ) -> None:
        self.op = op
        packed = pack_columns(matrix, mask, variant.height)
        self._product = _Product(
            packed, packed.columns * np.int32(op.tokens), bias, op.out_features, variant, builder, clamp
        )
        self._transpose = builder.kernel("transpose", _SQUARE)
        self._y_stride = max(op.tokens, self._product.tile)
        # Rows shorter than a tile are read into their successors: the values land in positions that nobody keeps.
        self._x = torch.zeros(op.tokens * op.in_features + self._product.tile)
        self._y = torch.zeros(self._product.rows_padded * self._y_stride)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        op = self.op
        if x.dtype != torch.float32 or x.shape[-1:] != (op.in_features,) or x.numel() != op.tokens * op.in_features:
            raise _wrong_input(op, x, f"[..., {op.in_features}] of {op.tokens} tokens")
        out = torch.empty(*x.shape[:-1], op.out_features)
        flat = x.reshape(-1).contiguous()  # a strided column reshapes to a strided vector
        if op.tokens == 1:
            self._x[: op.in_features] = flat
        else:
            self._transpose(flat, self._x, op.tokens, op.in_features, op.in_features, op.tokens)
        self._product(self._x, self._y, 1, op.tokens, 0, self._y_stride)
        self._transpose(self._y, out.view(-1), op.out_features, op.tokens, self._y_stride, op.out_features)
        return out


class Conv2dKernel:
    """A 2-d convolution: float32 [batch, in_channels, height, width] -> [batch, out_channels, rows, cols].

    Without the batch dimension both ways, as PyTorch's, where `op.batch` is 1. The result is a view into rows that are
    as wide as the padded input, so it may not be contiguous.
    """

    def __init__(
        self,
        op: Conv2dOp,
        matrix: torch.Tensor,
        mask: torch.Tensor,
        bias: torch.Tensor | None,
        variant: Variant,
        builder: Builder,
        clamp: Clamp = NO_CLAMP,
    ) -> None:
        self.op = op
        packed = pack_columns(matrix, mask, variant.height)
        rows, cols = phase_size(op)
        phases = _used_phases(op)
        offsets = _conv_offsets(op, phases, rows, cols)[packed.columns]
        self._product = _Product(packed, offsets, bias, op.out_channels, variant, builder, clamp)
        self._pixels = positions(op)
        self._x_stride = len(phases) * op.in_channels * rows * cols
        out_rows, out_cols = op.out_size
        self._y_stride = max(self._pixels, out_rows * cols, self._product.tile)
        self._y_shape = (op.batch, op.out_channels, out_rows, out_cols)
        self._y_strides = (self._product.rows_padded * self._y_stride, self._y_stride, cols, 1)
        self._direct = (
            op.kernel == (1, 1) and op.stride == (1, 1) and not any(op.padding) and self._pixels >= self._product.tile
        )
        if not self._direct:
            self._pad = builder.kernel("pad_phases", op.stride[1])
            self._phases = torch.tensor(_phase_copies(op, phases, rows, cols), dtype=torch.int32).reshape(-1)
            self._x = torch.zeros(op.batch * self._x_stride + self._product.tile)
            self._pad_sizes = (rows, cols, op.stride[0], builder.target.threads)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        op = self.op
        if x.dim() == 3 and op.batch == 1:
            return self(x[None])[0]
        shape = (op.batch, op.in_channels, op.height, op.width)
        if x.dtype != torch.float32 or x.shape != shape:
            raise _wrong_input(op, x, str(list(shape)))
        y = torch.empty(op.batch * self._y_strides[0])
        if self._direct:
            packed = x.reshape(-1).contiguous()
        else:
            packed = self._x
            if x.stride(3) != 1:
                x = x.contiguous()
            size, stride = x.shape, x.stride()
            memory = x.as_strided((sum((n - 1) * s for n, s in zip(size, stride)) + 1,), (1,))
            self._pad(memory, self._phases, packed, op.batch, op.in_channels, *stride[:3], *self._pad_sizes)
        self._product(packed, y, op.batch, self._pixels, self._x_stride, self._y_stride)
        return y.as_strided(self._y_shape, self._y_strides)


LayerKernel = LinearKernel | Conv2dKernel


def bind(
    op: Op,
    matrix: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    variant: Variant,
    builder: Builder,
    clamp: Clamp = NO_CLAMP,
) -> LayerKernel:
    """A callable that computes `op` with weight matrix float32 [rows, cols] under a bool mask, bias and clamp fused.

    It owns scratch memory: one thread at a time, and raises InputError for an input of another shape or dtype.
    Raises CompileError for a grouped convolution.
    """
    if isinstance(op, LinearOp):
        return LinearKernel(op, matrix, mask, bias, variant, builder, clamp)
    if op.groups != 1:
        raise CompileError(f"a convolution must have groups == 1 for a kernel, but got {op.key}; keep this layer dense")
    return Conv2dKernel(op, matrix, mask, bias, variant, builder, clamp)


def _wrong_input(op: Op, x: torch.Tensor, shape: str) -> InputError:
    return InputError(
        f"a layer compiled for {op.key} needs a float32 input {shape}, but got {x.dtype} {list(x.shape)}; "
        "compile it for this input"
    )


def _used_phases(op: Conv2dOp) -> list[tuple[int, int]]:
    """The (row, col) remainders of the stride that some kernel position reads."""
    in_y = {ky * op.dilation[0] % op.stride[0] for ky in range(op.kernel[0])}
    in_x = {kx * op.dilation[1] % op.stride[1] for kx in range(op.kernel[1])}
    return [(y, x) for y in sorted(in_y) for x in sorted(in_x)]


def _phase_copies(op: Conv2dOp, phases: list[tuple[int, int]], rows: int, cols: int) -> list[tuple[int, ...]]:
    """For each phase the part of its image that is copied: first row, rows, first col, cols, source row, source col."""
    copies: list[tuple[int, ...]] = []
    for phase in phases:
        spans = []
        for start, step, before, size, limit in zip(phase, op.stride, op.padding, (op.height, op.width), (rows, cols)):
            shift = start - before  # phase position i reads image position i * step + shift
            first = max(0, -(shift // step))
            count = max(0, min(limit, (size - 1 - shift) // step + 1) - first)
            spans.append((first, count, first * step + shift))
        (y, ys, source_y), (x, xs, source_x) = spans
        copies.append((y, ys, x, xs, source_y, source_x))
    return copies


def _conv_offsets(op: Conv2dOp, phases: list[tuple[int, int]], rows: int, cols: int) -> npt.NDArray[np.int32]:
    """Where each weight-matrix column (ky, kx, channel) starts in the packed input of one image: int32 [columns]."""
    y = np.arange(op.kernel[0])[:, None, None] * op.dilation[0]  # [kh, 1, 1]
    x = np.arange(op.kernel[1])[None, :, None] * op.dilation[1]  # [1, kw, 1]
    index = {phase: i for i, phase in enumerate(phases)}
    phase = np.array(
        [[[index[int(a) % op.stride[0], int(b) % op.stride[1]]] for b in x[0, :, 0]] for a in y[:, 0, 0]]
    )  # [kh, kw, 1]
    channel = np.arange(op.in_channels)  # [C]
    offsets = ((phase * op.in_channels + channel) * rows + y // op.stride[0]) * cols + x // op.stride[1]
    return np.ascontiguousarray(offsets.reshape(-1).astype(np.int32))


def _balanced_splits(indptr: npt.NDArray[np.int32], splits: int) -> npt.NDArray[np.int32]:
    """Row groups at which `splits` tasks of about equal numbers of columns begin, and the end: int32 [splits + 1]."""
    # One column's worth for every group: storing a tile costs too.
    work = indptr.astype(np.int64) + np.arange(len(indptr))
    bounds = np.searchsorted(work, np.arange(splits + 1) * work[-1] / splits)
    bounds[0], bounds[-1] = 0, len(indptr) - 1
    return np.ascontiguousarray(np.maximum.accumulate(bounds).astype(np.int32))


__all__ = ["NO_CLAMP", "RELU", "Clamp", "Conv2dKernel", "LayerKernel", "LinearKernel", "bind"]
