"""Random pruning: what every other method must beat."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.choosing import Scope, check_scope, choose, pattern_of, pruned_layers
from pruneaug.pruners.protocol import CalibrationData, Pruned
from pruneaug.sparsity.masks import block_sizes, expand_blocks
from pruneaug.sparsity.matrix import weight_from_matrix
from pruneaug.sparsity.patterns import Assignment


class Random:
    """Removes blocks drawn at random, every block with the same probability.

    What is drawn in a layer depends on `seed` and the layer's name, not on the other layers.
    """

    def __init__(self, scope: Scope = "layer", seed: int = 0) -> None:
        self.scope = check_scope(scope, "random")
        self.seed = seed

    def scores(self, model: nn.Module, network: Network, data: CalibrationData | None) -> dict[str, Tensor]:
        """A score in [0, 1) for each single weight."""
        weights = {layer.name: get_weight(model, layer.name) for layer in network.layers}
        return {name: self._draw(name, weight.shape, weight.device) for name, weight in weights.items()}

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        layers = pruned_layers(network, assignment)
        scores = {}
        for layer in layers:
            weight, block = get_weight(model, layer.name), pattern_of(layer.name, assignment)
            shape = layer.op.matrix_shape
            drawn = self._draw(layer.name, block.grid(shape), weight.device)
            if self.scope == "layer":  # blocks compare by their sum there, and narrower ones must not have less
                drawn = drawn / block_sizes(block, shape, weight.device)
            scores[layer.name] = weight_from_matrix(expand_blocks(drawn, block, shape), weight.shape)
        return Pruned(choose(scores, layers, assignment, self.scope))

    def _draw(self, name: str, shape: Sequence[int], device: torch.device) -> Tensor:
        """The same numbers on every device."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        return torch.rand(tuple(shape), generator=generator).to(device)
