"""Number formats of tensor cores: what lies in memory, and the instruction that multiplies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

PIECE = 16  # bytes that one instruction copies
STEP = 32  # bytes of a row that one mma multiplies


@dataclass(frozen=True, slots=True)
class Format:
    """Inputs, weights and outputs of a product; sums are float32."""

    name: str
    size: int  # bytes of a value
    dtype: str  # of inputs and outputs, in TVM and in PyTorch
    mma: str  # PTX
    pack: str = ""  # PTX that rounds two float32 values to a word, the high one first
    wgmma: str = ""  # PTX of a warpgroup's product with so many columns, if there is one
    splits: bool = False  # each value is the sum of two that are multiplied; see `fragments.split_to_tf32`

    @property
    def per_piece(self) -> int:
        """Values in a piece of 16 bytes."""
        return PIECE // self.size

    @property
    def depth(self) -> int:
        """Columns that one mma multiplies."""
        return STEP // self.size

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    def words(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
        """float32 [n] rounded to this format, as words of 32 bits [n * size / 4]."""
        if self.size == 4:
            return np.ascontiguousarray(values).view(np.uint32) if self.splits else round_tf32(values)
        held = torch.from_numpy(np.ascontiguousarray(values)).to(self.torch_dtype)
        return held.view(torch.int16).numpy().view(np.uint32)


def round_tf32(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """The bits of float32 values rounded to 10 bits of mantissa, ties away from zero, as `cvt.rna.tf32` does."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded, bits)


def place(row: Any, piece: Any, pieces: int) -> Any:
    """Where the piece lies in a row of so many, a number or an expression. Its own inverse."""
    return piece ^ (row * min(pieces, 8) // 8 % min(pieces, 8))


_MMA = "mma.sync.aligned.m16n8k{}.row.col.f32.{}.{}.f32"
_WGMMA = "wgmma.mma_async.sync.aligned.m64n{{}}k16.f32.{0}.{0}"
FLOAT16 = Format("float16", 2, "float16", _MMA.format(16, "f16", "f16"), "cvt.rn.f16x2.f32", _WGMMA.format("f16"))
BFLOAT16 = Format(
    "bfloat16", 2, "bfloat16", _MMA.format(16, "bf16", "bf16"), "cvt.rn.bf16x2.f32", _WGMMA.format("bf16")
)
TF32 = Format("tf32", 4, "float32", _MMA.format(8, "tf32", "tf32"))
FLOAT32 = Format("float32", 4, "float32", TF32.mma, splits=True)

FORMATS: Mapping[str, Format] = {form.name: form for form in (FLOAT16, BFLOAT16, TF32, FLOAT32)}
