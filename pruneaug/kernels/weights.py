"""What every kernel of a linear layer or a convolution takes: weights under a mask, and what follows the sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.sparsity.packing import PackedColumns, pack_columns

Clamp = tuple[float, float]
NO_CLAMP: Clamp = (-math.inf, math.inf)
RELU: Clamp = (0.0, math.inf)


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
        return padded(torch.zeros(0) if self.bias is None else self.bias.float(), rows, np.float32)


def padded(values: torch.Tensor, rows: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """A value for each row [N] as an array [rows]; the rows that fill up the last group have 0."""
    array = np.zeros(rows, dtype)
    array[: len(values)] = values.detach().numpy()
    return array
