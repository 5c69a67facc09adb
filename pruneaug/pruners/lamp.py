"""LAMP: layer-adaptive magnitude pruning (Lee et al., 2021, arXiv:2010.07611)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.choosing import choose, naming, pattern_of, pruned_layers
from pruneaug.pruners.protocol import CalibrationData, Pruned
from pruneaug.sparsity.masks import expand_blocks, pool_scores
from pruneaug.sparsity.matrix import weight_from_matrix, weight_matrix
from pruneaug.sparsity.patterns import Assignment


class Lamp:
    """One threshold over all layers on what a block is worth among those of its layer that would outlive it.

    A block of squared norm m scores m / (the sum of the squared norms of its layer's blocks that are not smaller), so
    the best block of every layer scores 1. Within a layer the order is that of magnitude.
    """

    def scores(self, model: nn.Module, network: Network, data: CalibrationData | None) -> dict[str, Tensor]:
        """The scores of single weights."""
        weights = {layer.name: get_weight(model, layer.name).detach() for layer in network.layers}
        return {name: lamp(weight.double().square()).float() for name, weight in weights.items()}

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        layers = pruned_layers(network, assignment)
        scores = {}
        for layer in layers:
            weight, block = get_weight(model, layer.name).detach(), pattern_of(layer.name, assignment)
            with naming(layer.name):
                norms = pool_scores(weight_matrix(weight).double().square(), block)
                matrix = expand_blocks(lamp(norms).float(), block, layer.op.matrix_shape)
            scores[layer.name] = weight_from_matrix(matrix, weight.shape)
        return Pruned(choose(scores, layers, assignment, "global"))


def lamp(squares: Tensor) -> Tensor:
    """Each value over the sum of those not smaller, in any shape; of equal values the earlier counts as larger."""
    ordered, order = squares.flatten().sort(descending=True, stable=True)
    survivors = ordered.cumsum(0).clamp_min(torch.finfo(ordered.dtype).tiny)  # of a layer of zeros: 0 / tiny
    return torch.empty_like(ordered).scatter_(0, order, ordered / survivors).view(squares.shape)
