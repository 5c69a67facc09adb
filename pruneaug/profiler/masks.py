"""Masks for measuring: zeros that fall as pruning a trained network makes them fall, clumped by row and by column."""

from __future__ import annotations

import torch

from pruneaug.sparsity.patterns import Block

_SPREAD = 0.5  # standard deviation of the log importance over rows, and over columns


def synthetic_scores(matrix_shape: tuple[int, int], block: Block, generator: torch.Generator) -> torch.Tensor:
    """Block scores float32 [block rows, block cols] with important and unimportant rows and columns."""
    rows, cols = block.grid(matrix_shape)
    # The mean importance of a block varies less the more rows it averages over.
    row = torch.randn(rows, 1, generator=generator).mul_(_SPREAD / block.rows**0.5)
    col = torch.randn(1, cols, generator=generator).mul_(_SPREAD / block.cols**0.5)
    noise = torch.randn(rows, cols, generator=generator).mul_(1 / (block.rows * block.cols) ** 0.5)
    return noise.add_(row).add_(col)


def keep_largest(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The bool grid of the round((1 - sparsity) * blocks) blocks with the largest score, at least one."""
    keep = max(1, round((1 - sparsity) * scores.numel()))
    if keep >= scores.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.flatten().kthvalue(scores.numel() - keep).values
    return scores > threshold
