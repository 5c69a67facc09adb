"""Packing for kernels of words: a sparse weight matrix as the words that row groups read, and where they meet x."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.errors import CompileError
from pruneaug.kernels.layouts import taps
from pruneaug.kernels.lowp.formats import BFLOAT16, Format, quantize_rows, words
from pruneaug.kernels.planes import Planes
from pruneaug.kernels.products import Weights
from pruneaug.network.ops import Conv2dOp, LinearOp, Op
from pruneaug.sparsity.packing import pack_columns


@dataclass(frozen=True, slots=True, eq=False)
class PackedWords:
    """A weight matrix in groups of rows, as `pruneaug.sparsity.packing` packs one, its columns a word wide."""

    words: npt.NDArray[np.int32]  # [entries * height], at least one
    columns: npt.NDArray[np.int32]  # [entries] of word columns
    indptr: npt.NDArray[np.int32]  # [row groups + 1]
    scale: torch.Tensor  # float64 [N], of each row's weights
    total: torch.Tensor  # int64 [N], the sum of each row's weights (int8)


def pack_words(op: Op, weights: Weights, height: int, form: Format, least_scale: torch.Tensor) -> PackedWords:
    """The masked matrix, `height` rows a group. Each tap of a convolution begins a new word.

    `least_scale` float64 [N] bounds the scales of int8.

    A word is kept as a whole if the mask keeps any of its weights in any row of the group; the others are zero in it.
    """
    matrix = weights.matrix.detach()
    mask = torch.ones_like(matrix, dtype=torch.bool) if weights.mask is None else weights.mask
    matrix = torch.where(mask, matrix, 0.0)
    rows = len(matrix)
    if form is BFLOAT16:
        values, scale = matrix.to(torch.bfloat16), torch.ones(rows, dtype=torch.float64)
        total = torch.zeros(rows, dtype=torch.int64)
    else:
        values, scale = quantize_rows(matrix, least_scale)
        total = values.sum(dim=1, dtype=torch.int64)
    tap_count = 1 if isinstance(op, LinearOp) else op.kernel[0] * op.kernel[1]

    def by_word(array: torch.Tensor) -> torch.Tensor:
        """[N, taps * channels] -> int32 [N, words * taps]: the taps of a word together, which share cache lines."""
        return words(array.reshape(rows, tap_count, -1)).transpose(1, 2).flatten(1)

    in_words, keep = by_word(values), by_word(mask.to(values.dtype)) != 0
    # The packing copies bits: words pass for float32 values.
    packed = pack_columns(in_words.view(torch.float32), keep, height)
    entries = packed.values.reshape(-1).view(np.int32)
    return PackedWords(entries if entries.size else np.zeros(1, np.int32), packed.columns, packed.indptr, scale, total)


def word_offsets(op: Op, x: Planes, columns: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Where the word columns of the matrix begin in x: int32 [entries], at least one.

    Raises CompileError if an offset would not fit.
    """
    plane = np.arange(x.channels, dtype=np.int64) * x.channel_stride + x.lead
    if isinstance(op, Conv2dOp):
        reads = taps(op)
        shifts = [y * x.pitch + x_ for _, y in reads.rows for _, x_ in reads.cols]
        plane = (plane[:, None] + np.asarray(shifts)).reshape(-1)
    if x.size >= 2**31:
        raise CompileError(
            f"an activation must have fewer than 2**31 words, but a layer reads {x.size}; "
            "compile it for a smaller batch"
        )
    offsets = plane[columns].astype(np.int32)
    return offsets if offsets.size else np.zeros(1, np.int32)
