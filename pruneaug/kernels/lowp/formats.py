"""What reduced precision means: the formats, and tensors in words of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pruneaug.errors import InputError
from pruneaug.registry import did_you_mean


@dataclass(frozen=True, slots=True)
class Format:
    """A format of weights and activations, `per_word` values of which make a word of 32 bits."""

    name: str
    per_word: int
    accumulator: str  # dtype of the sums
    extension: str  # the vector extension, as a platform names it, that has the dot product of words


BFLOAT16 = Format("bfloat16", 2, "float32", "avx512_bf16")
INT8 = Format("int8", 4, "int32", "avx512_vnni")
FORMATS: Mapping[str, Format] = {form.name: form for form in (BFLOAT16, INT8)}


def format_for(name: str, isa: Sequence[str]) -> Format:
    """The format of this name for a CPU with the vector extensions `isa`.

    Raises InputError for a name that is none, or a CPU without the format's instructions.
    """
    if name not in FORMATS:
        raise InputError(
            f"a reduced precision must be one of {', '.join(FORMATS)}, but got {name!r}{did_you_mean(name, FORMATS)}"
        )
    form = FORMATS[name]
    if form.extension not in isa:
        raise InputError(
            f"{name} kernels need a CPU with {form.extension}, but this one has only {', '.join(isa) or 'none'}; "
            "use float32"
        )
    return form


@dataclass(frozen=True, slots=True)
class Affine:
    """Quantisation of activations: value = scale * (q - zero_point), q in 0..255."""

    scale: float
    zero_point: int


def affine_of(values: torch.Tensor) -> Affine:
    """The quantisation that covers the range of `values` and zero, which has a q of its own."""
    low, high = (min(0.0, float(values.min())), max(0.0, float(values.max()))) if values.numel() else (0.0, 0.0)
    scale = (high - low) / 255 or 1.0
    return Affine(scale, round(-low / scale))


def quantize(values: torch.Tensor, affine: Affine) -> torch.Tensor:
    """float -> uint8, rounded to the nearest, ties to even; values outside of the range become its ends."""
    return (values.double() / affine.scale + affine.zero_point).round().clamp(0, 255).to(torch.uint8)


def dequantize(q: torch.Tensor, affine: Affine) -> torch.Tensor:
    """uint8 -> float64."""
    return affine.scale * (q.double() - affine.zero_point)


def quantize_rows(matrix: torch.Tensor, least: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight matrix [N, K] as int8 in -127..127 and the scales float64 [N] of its rows, not below `least` [N]."""
    scale = matrix.double().abs().amax(dim=1) / 127
    scale = scale if least is None else scale.maximum(least)
    scale = torch.where(scale > 0, scale, 1.0)
    return (matrix.double() / scale[:, None]).round().to(torch.int8), scale


def words(values: torch.Tensor) -> torch.Tensor:
    """bfloat16, int8 or uint8 [..., channels] -> int32 [..., words]; what the last word lacks is zero."""
    per_word = 4 // values.element_size()
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % per_word))
    flat = _flat(padded).view(torch.int32)
    return flat.view(*values.shape[:-1], padded.shape[-1] // per_word)


def values_of(word: torch.Tensor, dtype: torch.dtype, channels: int) -> torch.Tensor:
    """What `words` was given: int32 [..., words] -> `dtype` [..., channels]."""
    values = _flat(word).view(dtype)
    return values.view(*word.shape[:-1], word.shape[-1] * 4 // dtype.itemsize)[..., :channels]


def _flat(values: torch.Tensor) -> torch.Tensor:
    """All values, in a dimension of stride 1: a view of another dtype takes strides for real, even of a size of 1."""
    return values.flatten().clone(memory_format=torch.contiguous_format)  # `contiguous` keeps the stride of one value
