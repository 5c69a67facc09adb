"""Packing for kernels of words: a sparse weight matrix as the words that row groups read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.kernels.lowp.formats import BFLOAT16, Format, quantize_rows, words
from pruneaug.kernels.products import by_channel
from pruneaug.kernels.weights import Weights
from pruneaug.network.ops import LinearOp, Op
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

    # [N, taps * channels] -> int32 [N, taps, words]
    in_words, keep = (words(array.reshape(rows, tap_count, -1)) for array in (values, mask.to(values.dtype)))
    # The packing copies bits: words pass for float32 values.
    packed = pack_columns(in_words.flatten(1).view(torch.float32), keep.flatten(1) != 0, height)
    packed = by_channel(packed, in_words.shape[2], tap_count)
    entries = packed.values.reshape(-1).view(np.int32)
    return PackedWords(entries if entries.size else np.zeros(1, np.int32), packed.columns, packed.indptr, scale, total)
