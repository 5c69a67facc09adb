"""A layer's weight as a weight matrix: the form on which all patterns are defined."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruneaug.errors import InputError


def weight_matrix(weight: torch.Tensor) -> torch.Tensor:
    """The weight matrix [rows, cols] of a linear weight [O, I] or a convolution's [O, C, kh, kw] (ungrouped).

    Rows are output features. Columns are inputs: input features, or (ky, kx, input channel) in this order.
    A linear weight comes back as it is, not copied. Masks and scores in layer layout are converted alike.
    """
    if weight.dim() == 2:
        return weight
    if weight.dim() == 4:
        return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)  # [O, kh*kw*C]
    raise InputError(
        f"a prunable weight must have shape [O, I] or [O, C, kh, kw], but got {list(weight.shape)}; "
        "keep this layer dense"
    )


def weight_from_matrix(matrix: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The weight in layer layout `shape` whose `weight_matrix` is `matrix`; contiguous."""
    if len(shape) not in (2, 4) or tuple(matrix.shape) != (shape[0], _product(shape[1:])):
        raise InputError(
            f"a weight matrix must be [O, everything else] of its layer's weight shape, but got a matrix "
            f"{list(matrix.shape)} for a weight {list(shape)}"
        )
    if len(shape) == 2:
        return matrix
    out_channels, in_channels, height, width = shape
    return matrix.reshape(out_channels, height, width, in_channels).permute(0, 3, 1, 2).contiguous()


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
