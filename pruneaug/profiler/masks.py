"""Masks for measuring: zeros that fall as pruning a trained network makes them fall, clumped by row and by column."""

from __future__ import annotations

import torch

from pruneaug.network.layers import Network
from pruneaug.network.ops import Conv2dOp, Op
from pruneaug.sparsity.masks import block_mask, expand_blocks
from pruneaug.sparsity.matrix import weight_from_matrix
from pruneaug.sparsity.patterns import NM, Assignment, Pattern

_SPREAD = 0.5  # standard deviation of the log importance over rows, and over columns


def synthetic_scores(matrix_shape: tuple[int, int], block: Pattern, generator: torch.Generator) -> torch.Tensor:
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


def mask_of_scores(
    scores: torch.Tensor, block: Pattern, sparsity: float, matrix_shape: tuple[int, int]
) -> torch.Tensor:
    """The bool mask [N, K] that keeps the blocks with the largest of these scores, or of N:M the weights."""
    if isinstance(block, NM):
        return block_mask(scores, block, sparsity)
    return expand_blocks(keep_largest(scores, sparsity), block, matrix_shape)


def synthetic_masks(network: Network, assignment: Assignment) -> dict[str, torch.Tensor]:
    """Masks of the layers that are sparse, bool in their weights' layout, for measuring a network."""
    masks = {}
    for layer in network.layers:
        choice = assignment.get(layer.name)
        if choice is not None and choice.pattern is not None:
            shape = layer.op.matrix_shape
            scores = synthetic_scores(shape, choice.pattern, torch.Generator().manual_seed(0))
            matrix = mask_of_scores(scores, choice.pattern, choice.sparsity, shape)
            masks[layer.name] = weight_from_matrix(matrix, weight_shape(layer.op))
    return masks


def weight_shape(op: Op) -> tuple[int, ...]:
    """Of the weight that PyTorch's layer has."""
    if isinstance(op, Conv2dOp):
        return (op.out_channels, op.in_channels // op.groups, *op.kernel)
    return op.matrix_shape
