"""Saliency: what each choice of a layer loses of the score of its weights, before any training.

A choice removes the blocks of smallest pooled score, as pruning does, so its loss is a prefix sum over the sorted
blocks: one sort per (layer, pattern) tells it for all sparsities, exactly. N:M has one sparsity, and one mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from pruneaug.errors import PluginError, PruneaugError, RunError
from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.protocol import CalibrationData, Pruner, Scorer
from pruneaug.searcher.space import LayerSpace, SearchSpace
from pruneaug.sparsity.masks import block_mask, block_sizes, kept_count, pool_scores
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import NM, Pattern

_ALL = 1 - 1e-6  # as near as sums of float32 tell; the logarithm of nothing kept is no number
Compare = Literal["auto", "layer", "network"]


def weigh_space(
    space: SearchSpace,
    model: nn.Module,
    network: Network,
    pruner: Pruner,
    data: CalibrationData | None,
    compare: Compare = "auto",
) -> SearchSpace:
    """The space with what every choice loses, by the pruner's scores of the dense model.

    A pruner without scores is taken for magnitude: squared weights, compared by layer. With compare `layer` a loss is
    -log(1 - f), f the fraction of its layer's score: what is kept multiplies from layer to layer, so its logarithms add
    up, whatever the scores' unit, and the last of a layer is dear. With `network` a loss is the fraction of the
    network's score, for scores that estimate a change of the loss and add up themselves. `auto` is `network` for
    pruners that say so (`scores_compare`), else `layer`.

    Raises PluginError for a pruner that fails, or whose scores are none.
    """
    if isinstance(pruner, Scorer):
        scores = _scores(pruner, model, network, data)
    else:
        scores = {layer.name: get_weight(model, layer.name).detach().float() ** 2 for layer in network.layers}
    if compare == "auto":
        compare = "network" if getattr(pruner, "scores_compare", False) else "layer"
    return lose(space, scores, compare)


def lose(
    space: SearchSpace, scores: Mapping[str, torch.Tensor], compare: Literal["layer", "network"] = "layer"
) -> SearchSpace:
    """The space with what every choice loses of `scores`: layer name -> score in the weight's layout, at least 0."""
    lost: dict[str, list[float]] = {}
    totals: dict[str, float] = {}
    for layer in space.layers:
        if layer.name not in scores:
            raise PluginError(f"a pruner's scores must hold every prunable layer, but {layer.name!r} is missing")
        matrix = weight_matrix(scores[layer.name].detach())
        totals[layer.name] = float(matrix.sum(dtype=torch.float64))
        if tuple(matrix.shape) != layer.layer.op.matrix_shape or not totals[layer.name] >= 0:
            raise PluginError(
                f"scores must be finite, at least 0 and in the weight's layout, but those of layer {layer.name!r} "
                f"have shape {list(scores[layer.name].shape)} and sum {totals[layer.name]:g}"
            )
        lost[layer.name] = _lost(layer, matrix)
    if compare == "network":
        whole = math.fsum(totals.values()) or 1.0
        return _with_lost(space, {name: [each / whole for each in losses] for name, losses in lost.items()})
    return _with_lost(space, {name: _logarithms(losses, totals[name]) for name, losses in lost.items()})


def saliency_to_json(space: SearchSpace) -> dict[str, Any]:
    """What every choice of a scored space loses, to be kept beside a run."""
    return {
        layer.name: {str(choice): lost for choice, lost in zip(layer.choices, layer.lost or (), strict=True)}
        for layer in space.layers
    }


def saliency_from_json(space: SearchSpace, value: Mapping[str, Mapping[str, float]]) -> SearchSpace:
    """The space with the losses that `saliency_to_json` wrote. Raises RunError if they are of another space."""
    try:
        return _with_lost(
            space,
            {layer.name: [float(value[layer.name][str(each)]) for each in layer.choices] for layer in space.layers},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"stored saliency must be that of the search space, but is not ({type(error).__name__}: {error}); "
            "remove it to have it made again"
        ) from error


def removed_score(matrix: torch.Tensor, block: Pattern, sparsities: Sequence[float]) -> list[float]:
    """The score that `block_mask` removes from `matrix` [N, K] at each sparsity."""
    if isinstance(block, NM):
        masks = (block_mask(matrix, block, sparsity) for sparsity in sparsities)
        return [float(matrix.masked_fill(mask, 0.0).sum(dtype=torch.float64)) for mask in masks]
    pooled = pool_scores(matrix, block).flatten()
    shape = (matrix.shape[0], matrix.shape[1])
    ordered, order = pooled.sort(descending=True, stable=True)
    sizes = block_sizes(block, shape, matrix.device).flatten().double()
    kept_weight = sizes[order].cumsum(0)
    # From the small end: the difference of two large sums would lose the small losses' digits.
    removed = torch.cat([ordered.double().flip(0).cumsum(0).flip(0), torch.zeros(1, device=matrix.device)])
    return [float(removed[kept_count(kept_weight, sparsity)]) for sparsity in sparsities]


def _scores(
    pruner: Scorer, model: nn.Module, network: Network, data: CalibrationData | None
) -> Mapping[str, torch.Tensor]:
    try:
        return pruner.scores(model, network, data)
    except PruneaugError:
        raise
    except Exception as error:
        raise PluginError(
            f"the pruner {type(pruner).__name__!r} failed to score the network: {type(error).__name__}: {error}; "
            "mend it"
        ) from error


def _lost(layer: LayerSpace, matrix: torch.Tensor) -> list[float]:
    """Of each choice, in the scores' unit."""
    found: dict[tuple[Pattern, float], float] = {}
    for pattern in layer.patterns:
        sparsities = [choice.sparsity for choice in layer.choices if choice.pattern == pattern]
        losses = removed_score(matrix, pattern, sparsities)
        found |= {(pattern, sparsity): lost for sparsity, lost in zip(sparsities, losses, strict=True)}
    return [0.0 if choice.pattern is None else found[choice.pattern, choice.sparsity] for choice in layer.choices]


def _logarithms(losses: Sequence[float], total: float) -> list[float]:
    """-log of the kept fractions; a layer whose scores are all 0 has nothing to lose."""
    return [-math.log1p(-min(each / (total or 1.0), _ALL)) for each in losses]


def _with_lost(space: SearchSpace, lost: Mapping[str, Sequence[float]]) -> SearchSpace:
    return replace(space, layers=tuple(replace(layer, lost=tuple(lost[layer.name])) for layer in space.layers))
