"""A layer alone in reduced precision: its weights packed in words, and the kernel call that computes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.errors import CompileError
from pruneaug.kernels.build import Builder, CpuTarget, memory
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.layers import BoundCalls, Buffers
from pruneaug.kernels.lowp.dot import UINT8_BASE
from pruneaug.kernels.lowp.formats import (
    BFLOAT16,
    Affine,
    Format,
    dequantize,
    quantize,
    values_of,
    words,
)
from pruneaug.kernels.lowp.packing import PackedWords, pack_words
from pruneaug.kernels.lowp.planes import layer_planes
from pruneaug.kernels.lowp.spmm import word_spmm
from pruneaug.kernels.planes import Planes, inside, view
from pruneaug.kernels.products import balanced_splits, channel_offsets, checked_offsets, phase_offsets, runs, sizes_of
from pruneaug.kernels.variants import Variant, candidates
from pruneaug.kernels.weights import NO_CLAMP, Clamp, Weights, padded
from pruneaug.network.ops import Conv2dOp, LinearOp, Op

_IDENTITY = Affine(1.0, 0)
_TILE_COLUMNS = 4  # columns of a row group that take as long as storing its tile
_EVERY = 1000


@dataclass(frozen=True, slots=True)
class Precision:
    """How a layer computes: its format, for int8 the quantisation of its input, and its output.

    `y` is the output's quantisation for int8. With `rounded` the output lies in words of the format, else in float32
    planes. `native` takes the CPU's dot-product instructions, without which the same is computed slowly.
    """

    form: Format
    x: Affine = _IDENTITY
    y: Affine = _IDENTITY
    rounded: bool = True
    native: bool = True

    @property
    def y_per_word(self) -> int:
        """Channels in a word of the output."""
        return self.form.per_word if self.rounded else 1

    def border(self, affine: Affine) -> int:
        """The word of zeros."""
        word = 0 if self.form is BFLOAT16 else affine.zero_point * 0x01010101
        return word - 2**32 if word >= 2**31 else word  # int32

    def store(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [..., channels] -> words int32 [..., words]."""
        return words(x.to(torch.bfloat16) if self.form is BFLOAT16 else quantize(x, self.x))

    def read(self, word: torch.Tensor, channels: int) -> torch.Tensor:
        """Words int32 [..., words] of an output -> float64 [..., channels]."""
        if self.form is BFLOAT16:
            return values_of(word, torch.bfloat16, channels).double()
        return dequantize(values_of(word, torch.uint8, channels), self.y)


class LowpLayer(BoundCalls):
    """One op with its weights, bound to a kernel: calls on activations in planes of words."""

    def __init__(
        self,
        op: Op,
        weights: Weights,
        variant: Variant,
        builder: Builder,
        precision: Precision,
        clamp: Clamp = NO_CLAMP,
        *,
        cold_bytes: int = 0,
        buffers: Buffers | None = None,
    ) -> None:
        """Raises CompileError for an op that these kernels do not compute, or a height that makes no whole words."""
        self._op, self._precision = op, precision
        self._x, self._y = layer_planes(op, precision.form.per_word, precision.y_per_word, builder.target.lanes)
        call = layer_call(op, self._x, self._y, weights, variant, builder.target.lanes, precision, clamp)
        super().__init__([call], builder, cold_bytes, buffers, torch.int32 if precision.rounded else torch.float32)

    def prepare(self, x: torch.Tensor) -> Any:
        """The input float32 [tokens, in_features] or [batch, channels, height, width] as planes of words."""
        images = x[None, None] if x.dim() == 2 else x.permute(0, 2, 3, 1)  # [images, rows, cols, channels]
        flat = torch.full((self._x.size,), self._precision.border(self._precision.x), dtype=torch.int32)
        view(flat, self._x).copy_(self._precision.store(images).permute(0, 3, 1, 2))
        return memory(flat)

    def result(self) -> torch.Tensor:
        """What the last call computed: float64 [tokens, out_features] or [batch, channels, height, width]."""
        images = view(self.output, self._y).permute(0, 2, 3, 1)
        rows = self._op.matrix_shape[0]
        values = self._precision.read(images, rows) if self._precision.rounded else images.double()
        return values[0, 0] if isinstance(self._op, LinearOp) else values.permute(0, 3, 1, 2)


def layer_call(
    op: Op,
    x: Planes,
    y: Planes,
    weights: Weights,
    variant: Variant,
    lanes: int,
    precision: Precision,
    clamp: Clamp = NO_CLAMP,
) -> KernelCall:
    """The kernel call between the planes of `layer_planes`; `size` is that of the output in words or float32."""
    form = precision.form
    if precision.rounded and variant.height % form.per_word:
        raise CompileError(
            f"a variant's height must be a multiple of {form.per_word}, the {form.name} values in a word, but got "
            f"{variant}; choose another height"
        )
    bias = torch.zeros(len(weights.matrix)) if weights.bias is None else weights.bias.detach()
    # The bias of words of int8 is a number of steps of the sums, which have 32 bits.
    least_scale = bias.double().abs() / (2**30 * precision.x.scale)
    packed = pack_words(op, weights, variant.height, form, least_scale)
    if isinstance(op, Conv2dOp):
        offsets = phase_offsets(replace(op, in_channels=x.channels), x, y)  # a word is a channel of x
    else:
        offsets = channel_offsets(x)
    read = checked_offsets(offsets[packed.columns])
    rows = variant.height * (len(packed.indptr) - 1)
    _, positions = runs(y, lanes)
    function = word_spmm(
        form,
        variant.height,
        variant.vectors,
        positions // lanes % variant.vectors,
        lanes,
        rounded=precision.rounded,
        border=y.zero_border,
        native=precision.native,
    )
    constants = (
        packed.words,
        read if read.size else np.zeros(1, np.int32),
        packed.indptr,
        *_epilogue(packed, bias, rows, precision),
        balanced_splits(packed.indptr, variant.splits, _TILE_COLUMNS),
        np.asarray(_bounds(clamp, precision), np.float32),
        np.array([*sizes_of(x, y, lanes, variant.splits), precision.border(precision.y)], np.int32),
        inside(y, positions).astype(np.int32),
    )
    name = f"{form.name} {'product' if isinstance(op, LinearOp) else 'convolution'}"
    size = rows // precision.y_per_word * y.channel_stride
    return KernelCall(name, function, constants, max(size, y.size))


def lowp_candidates(
    op: Op, block_rows: int, sparsity: float, form: Format, target: CpuTarget, most: int
) -> list[Variant]:
    """The `most` variants with the least estimated cost of those that float32 has.

    Their lanes are positions, and their rows make whole words.
    """
    ranked = candidates(
        op,
        block_rows,
        sparsity,
        lanes=target.lanes,
        registers=target.registers,
        threads=target.threads,
        most=_EVERY,
    )
    whole = [variant for variant in ranked if variant.vectors and variant.height % form.per_word == 0]
    # Few rows may have none: the last word is then filled up with rows of zeros.
    return whole[:most] or [Variant(form.per_word, 1, 1)]


def _epilogue(
    packed: PackedWords, bias: torch.Tensor, rows: int, precision: Precision
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """start, scale and shift of the kernel, of every row and of those that fill up the last group."""
    if precision.form is BFLOAT16:
        none = np.zeros(1, np.float32)
        return padded(bias, rows, np.float32), none, none
    scale, start, shift = packed.scale * precision.x.scale, -precision.x.zero_point * packed.total, bias.double()
    if precision.rounded:
        start = start + (shift / scale).round().long()
        shift = torch.full_like(shift, UINT8_BASE + precision.y.zero_point)
        scale = scale / precision.y.scale
    return padded(start, rows, np.int32), padded(scale, rows, np.float32), padded(shift, rows, np.float32)


def _bounds(clamp: Clamp, precision: Precision) -> tuple[float, float]:
    """The clamp as the kernel applies it: to words of int8, whose values are rounded already."""
    if precision.form is BFLOAT16 or not precision.rounded:
        return clamp
    low, high = (min(max(value / precision.y.scale + precision.y.zero_point, 0.0), 255.0) for value in clamp)
    return UINT8_BASE + round(low), UINT8_BASE + round(high)
