"""Layer-wise reconstruction: which weights of a matrix to remove, and how the others make up for it.

For a weight matrix W [N, K] and the second moments H = X^T X of what it meets, the error of W' is
sum over rows of (w - w') H (w - w')^T. A grouped convolution has its own H for the rows of each group: H is
[G, K, K], and row n belongs to group n // (N / G). All in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruneaug.errors import InputError
from pruneaug.sparsity.masks import block_mask
from pruneaug.sparsity.patterns import NM, Pattern

_LEAST_BLOCKS = 8  # along a group of columns, so that there is a choice where blocks are wide


def damped(gram: Tensor, damping: float) -> Tensor:
    """H [G, K, K] plus `damping` times the mean of its diagonal on the diagonal, symmetric, float64."""
    gram = gram.double()
    means = gram.diagonal(dim1=1, dim2=2).mean(dim=1)  # [G]
    added = torch.where(means > 0, damping * means, torch.ones_like(means))  # a layer that meets only zeros
    return (gram + gram.transpose(1, 2)) / 2 + added[:, None, None] * torch.eye(gram.shape[1]).to(gram)


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper triangular U with U^T U = H^-1, [G, K, K].

    Row j of U is, up to the factor U[j, j], row j of the inverse of H without its first j rows and columns: what the
    removal of weight j asks of the weights behind it (Frantar and Alistarh, 2023).
    Raises InputError if H is not positive definite.
    """
    flipped, info = torch.linalg.cholesky_ex(hessian.flip(1, 2))
    if info.any():
        raise InputError("the moments of the inputs must be positive definite, but are not; raise `damping`")
    upper = flipped.flip(1, 2)  # H = upper @ upper^T
    factor: Tensor = torch.linalg.solve_triangular(upper, torch.eye(hessian.shape[1]).to(hessian), upper=True)
    return factor


def sweep(matrix: Tensor, factor: Tensor, pattern: Pattern, sparsity: float, columns: int) -> tuple[Tensor, Tensor]:
    """SparseGPT: (the matrix with the weights behind each removed one updated, the mask), both [N, K].

    Goes through the columns in groups of about `columns`, a multiple of the block's. In each, the blocks of smallest
    sum of w^2 / U[j, j]^2 are removed, and what that asks of all later columns is subtracted there. Every group gets
    the same sparsity; what a group misses for its blocks' size, the next makes up for. With N:M each m columns are
    chosen from when all columns before them are done.
    """
    groups, count = len(factor), matrix.shape[1]
    rows = matrix.double().view(groups, -1, count).clone()  # [G, N/G, K]
    mask = torch.empty(matrix.shape, dtype=torch.bool, device=matrix.device)
    diagonal = factor.diagonal(dim1=1, dim2=2)[:, None]  # [G, 1, K]
    unit = pattern.m if isinstance(pattern, NM) else pattern.cols
    width = unit * max(-(-columns // unit), _LEAST_BLOCKS)
    at_once = unit if isinstance(pattern, NM) else width  # columns that are chosen from
    removed = 0
    for start in range(0, count, width):
        stop = min(start + width, count)
        errors = torch.zeros_like(rows[:, :, start:stop])
        for j in range(start, stop):
            if (j - start) % at_once == 0:
                end = min(j + at_once, stop)
                saliency = (rows[:, :, j:end] / diagonal[:, :, j:end]).square().reshape(len(matrix), -1)
                missing = sparsity * len(matrix) * end - removed
                here = block_mask(saliency, pattern, min(max(missing / saliency.numel(), 0.0), 1.0))
                removed += here.numel() - int(here.sum())
                mask[:, j:end] = here
            error = rows[:, :, j] * ~mask[:, j].view(groups, -1) / diagonal[:, :, j]  # [G, N/G]
            rows[:, :, j:stop] -= error[:, :, None] * factor[:, None, j, j:stop]
            errors[:, :, j - start] = error
        rows[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return rows.view_as(matrix).masked_fill(~mask, 0.0), mask


def refit(matrix: Tensor, hessian: Tensor, mask: Tensor, pattern: Pattern) -> Tensor:
    """The weights [N, K] under a mask of the pattern that reconstruct `matrix` best: exact least squares.

    Costs one solution of a system of the kept columns for each row of blocks.
    """
    best = torch.zeros_like(matrix, dtype=torch.float64)
    height = len(matrix) // len(hessian)
    for group, moments in enumerate(hessian):
        first, last = group * height, (group + 1) * height
        start = first
        while start < last:
            stop = min((start // pattern.rows + 1) * pattern.rows, last)  # rows of one mask: within a block and a group
            kept = mask[start].nonzero().squeeze(1)
            if len(kept):
                target = moments[kept] @ matrix[start:stop].double().T  # [kept, rows]
                factor = torch.linalg.cholesky(moments[kept][:, kept])
                best[start:stop, kept] = torch.cholesky_solve(target, factor).T
            start = stop
    return best
