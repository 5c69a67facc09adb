"""Scores to masks: which blocks of a weight matrix are kept, or which weights of N:M.

A mask is bool and True where the weight is kept; a score is float and large where the weight matters.
N and K are the rows and columns of a weight matrix, gr and gc the rows and columns of its grid of blocks; with N:M each
weight is a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pruneaug.errors import InputError
from pruneaug.sparsity.patterns import NM, Block, Pattern


def pool_scores(scores: torch.Tensor, block: Pattern) -> torch.Tensor:
    """The sum of scores [N, K] over each block, [gr, gc]; the last blocks of a row or column may be narrower."""
    _check_matrix(scores)
    rows, cols = scores.shape
    block_rows, block_cols = block.grid((rows, cols))
    fill = (0, block_cols * block.cols - cols, 0, block_rows * block.rows - rows)
    padded = torch.nn.functional.pad(scores, fill)
    return padded.view(block_rows, block.rows, block_cols, block.cols).sum(dim=(1, 3))


def block_sizes(block: Pattern, matrix_shape: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """The number of weights in each block of a matrix, int64 [gr, gc]."""
    block_rows, block_cols = block.grid(matrix_shape)
    heights = (matrix_shape[0] - torch.arange(block_rows, device=device) * block.rows).clamp(max=block.rows)
    widths = (matrix_shape[1] - torch.arange(block_cols, device=device) * block.cols).clamp(max=block.cols)
    return heights[:, None] * widths


def expand_blocks(keep: torch.Tensor, block: Pattern, matrix_shape: tuple[int, int]) -> torch.Tensor:
    """The mask [N, K] that keeps the blocks `keep` (bool [gr, gc])."""
    if tuple(keep.shape) != block.grid(matrix_shape):
        raise InputError(
            f"a matrix {list(matrix_shape)} has {block.grid(matrix_shape)} blocks of {block}, "
            f"but got a choice of {tuple(keep.shape)}"
        )
    mask = keep.repeat_interleave(block.rows, dim=0).repeat_interleave(block.cols, dim=1)
    return mask[: matrix_shape[0], : matrix_shape[1]].contiguous()


def block_mask(scores: torch.Tensor, block: Pattern, sparsity: float) -> torch.Tensor:
    """The mask [N, K] that keeps the blocks of largest pooled score; of equal ones, the first in row order.

    Its fraction of zeros differs from `sparsity` by less than one block, and no other choice of as many blocks keeps
    more score. At least one block stays unless `sparsity` is 1: an empty layer would cut the network in two.

    With N:M the weights of largest score of each group stay. A lower sparsity keeps more, the largest of the others; a
    higher one removes no more.
    """
    pooled = _pooled(scores, block, "")
    if isinstance(block, NM):
        return _nm_mask(pooled, block, sparsity)
    shape = (scores.shape[0], scores.shape[1])
    sizes = block_sizes(block, shape, scores.device)
    keep = _keep_largest(pooled.flatten(), sizes.flatten().double(), sparsity)
    return expand_blocks(keep.view(pooled.shape), block, shape)


def block_mask_by_rows(scores: torch.Tensor, block: Pattern, sparsity: float) -> torch.Tensor:
    """The mask [N, K] that keeps the best blocks of each row of blocks: all rows get the same sparsity.

    A row keeps as many blocks as fit into its share, or one more: the extra ones go to the rows that would keep most
    by them, until the sparsity of the whole matrix differs from `sparsity` by less than one block. With N:M all rows
    are alike as it is.
    """
    pooled = _pooled(scores, block, "")
    if isinstance(block, NM):
        return _nm_mask(pooled, block, sparsity)
    shape = (scores.shape[0], scores.shape[1])
    sizes = block_sizes(block, shape, scores.device).double()
    ranks = pooled.argsort(dim=1, descending=True, stable=True)  # [gr, gc]: column of the best, the second, ...
    weight = sizes.gather(1, ranks).cumsum(1)
    share = (1.0 - sparsity) * weight[:, -1:] * (1 + 1e-9)  # rounding must not take a block from a row
    certain = (weight <= share).sum(1, keepdim=True)
    place = torch.arange(pooled.shape[1], device=scores.device)
    # Certain blocks come first, then each row's next one by its score, then the others.
    ordered = pooled.gather(1, ranks).masked_fill(place < certain, torch.inf).masked_fill(place > certain, -torch.inf)
    preference = torch.empty_like(pooled).scatter_(1, ranks, ordered)
    keep = _keep_largest(preference.flatten(), sizes.flatten(), sparsity)
    return expand_blocks(keep.view(pooled.shape), block, shape)


def block_masks(
    scores: Mapping[str, torch.Tensor],
    blocks: Mapping[str, Block],
    sparsity: float,
    costs: Mapping[str, float] | None = None,
) -> dict[str, torch.Tensor]:
    """Masks [N, K] of several layers by one threshold on their blocks' mean score per weight.

    The mean lets blocks of different sizes compare. `costs` (default: all equal) is what one weight of each layer
    counts in the overall sparsity; with multiplications per weight, `sparsity` is operation sparsity. It is met within
    one block; the best block of each layer stays unless `sparsity` is 1, even if more is kept than asked.
    """
    if not scores:
        return {}
    if missing := [name for name in scores if name not in blocks or (costs is not None and name not in costs)]:
        raise InputError(f"every scored layer needs a block and a cost, but these have none: {', '.join(missing)}")
    pooled = {name: _pooled(score, blocks[name], f" of layer {name!r}") for name, score in scores.items()}
    shapes = {name: (score.shape[0], score.shape[1]) for name, score in scores.items()}
    sizes = {name: block_sizes(blocks[name], shapes[name], scores[name].device) for name in scores}
    means, weights = [], []
    for name in scores:
        mean = (pooled[name] / sizes[name]).flatten()
        if sparsity < 1:
            mean[mean.argmax()] = torch.inf
        means.append(mean.cpu())
        weights.append(sizes[name].flatten().cpu() * (1.0 if costs is None else costs[name]))
    kept = _keep_largest(torch.cat(means), torch.cat(weights).double(), sparsity, at_least=len(scores))
    parts = torch.split(kept, [mean.numel() for mean in means])
    return {
        name: expand_blocks(part.to(scores[name].device).view(sizes[name].shape), blocks[name], shapes[name])
        for name, part in zip(scores, parts, strict=True)
    }


def mask_sparsity(mask: torch.Tensor) -> float:
    """The fraction of weights that a mask of any layout removes."""
    return 1.0 - int(mask.sum()) / mask.numel()


def check_mask(mask: torch.Tensor, block: Pattern) -> bool:
    """Whether a mask [N, K] keeps and removes only whole blocks, or with N:M keeps no more of any group than it may."""
    _check_matrix(mask)
    if isinstance(block, NM):
        kept = _in_groups(mask.int(), block, 0).sum(dim=2)  # [N, groups]
        return bool((kept <= _kept_of_groups(block, mask.shape[1], mask.device)).all())
    keep = mask[:: block.rows, :: block.cols]
    return torch.equal(expand_blocks(keep, block, (mask.shape[0], mask.shape[1])), mask)


def rows_alike(mask: torch.Tensor, sizes: Sequence[int]) -> int:
    """The first of `sizes`, the largest first, so that groups of as many rows of a mask [N, K] have all the same row.

    1 if there is none; a size must not be larger than the matrix. The last group may have fewer rows.
    """
    for rows in sizes:
        first = torch.arange(len(mask), device=mask.device) // rows * rows  # the first row of each row's group
        if rows <= len(mask) and bool((mask == mask[first]).all()):
            return rows
    return 1


def kept_count(kept_weight: torch.Tensor, sparsity: float, at_least: int = 1) -> int:
    """How many of the best items to keep; `kept_weight` float64 [items] is the weight of the best 1, 2, ... of them.

    So many that what is kept comes nearest to (1 - sparsity) of all weight; of two equally near counts the larger: it
    costs no accuracy. At least `at_least`, unless `sparsity` is 1.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise InputError(f"a sparsity must lie in [0, 1], but got {sparsity}")
    if sparsity == 1.0:
        return 0
    target = (1.0 - sparsity) * kept_weight[-1]
    below = int(torch.searchsorted(kept_weight, target))  # the largest count that keeps less than the target
    under = kept_weight[below - 1] if below > 0 else torch.zeros_like(target)
    # Rounding in 1 - sparsity must not decide between two choices that are equally near.
    rounding = 1e-9 * kept_weight[-1]
    over = kept_weight[min(below, len(kept_weight) - 1)]
    return max(below if target - under < over - target - rounding else below + 1, at_least)


def _keep_largest(scores: torch.Tensor, weights: torch.Tensor, sparsity: float, at_least: int = 1) -> torch.Tensor:
    """Of items with a score and a weight, keep those of largest score until nearest to (1 - sparsity) of all weight.

    [items], [items] -> bool [items].
    """
    keep = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    order = scores.argsort(descending=True, stable=True)
    keep[order[: kept_count(weights[order].cumsum(0), sparsity, at_least)]] = True
    return keep


def _nm_mask(scores: torch.Tensor, pattern: NM, sparsity: float) -> torch.Tensor:
    """`block_mask` of N:M; of equal scores of a group the first ones stay."""
    ranked = _in_groups(scores, pattern, -torch.inf).argsort(dim=2, descending=True, stable=True)  # [N, groups, m]
    ranks = ranked.argsort(dim=2)  # of each column in its group, 0 the best
    best = (ranks < _kept_of_groups(pattern, scores.shape[1], scores.device)[:, None]).flatten(1)
    keep = best[:, : scores.shape[1]].flatten()
    count = kept_count(torch.arange(1, keep.numel() + 1, dtype=torch.float64), sparsity)
    if (more := count - int(keep.sum())) > 0:
        others = (~keep).nonzero().squeeze(1)
        keep[others[scores.flatten()[others].argsort(descending=True, stable=True)[:more]]] = True
    return keep.view(scores.shape)


def _in_groups(matrix: torch.Tensor, pattern: NM, fill: float) -> torch.Tensor:
    """A matrix [N, K] as [N, groups, m], the last group filled up."""
    rows, cols = matrix.shape
    return torch.nn.functional.pad(matrix, (0, -cols % pattern.m), value=fill).view(rows, -1, pattern.m)


def _kept_of_groups(pattern: NM, cols: int, device: torch.device) -> torch.Tensor:
    """How many weights each group of a row of so many columns keeps, int64 [groups]."""
    widths = [min(pattern.m, cols - start) for start in range(0, cols, pattern.m)]
    return torch.tensor([pattern.kept(width) for width in widths], device=device)


def _pooled(scores: torch.Tensor, block: Pattern, whose: str) -> torch.Tensor:
    pooled = pool_scores(scores, block)
    if pooled.isnan().any():
        raise InputError(f"scores{whose} must be numbers, but some are NaN; check that the weights are finite")
    return pooled


def _check_matrix(matrix: torch.Tensor) -> None:
    if matrix.dim() != 2 or matrix.numel() == 0:
        raise InputError(f"scores and masks must be a matrix [N, K] that is not empty, but got {list(matrix.shape)}")
