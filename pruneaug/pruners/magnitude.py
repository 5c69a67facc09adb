"""Magnitude pruning: a block matters as much as its weights are large."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from pruneaug.errors import InputError, NetworkError, SpecError
from pruneaug.network.layers import Layer, Network, get_weight
from pruneaug.pruners.protocol import CalibrationData, Masks, Pruned
from pruneaug.registry import did_you_mean
from pruneaug.sparsity.masks import block_mask, block_masks
from pruneaug.sparsity.matrix import weight_from_matrix, weight_matrix
from pruneaug.sparsity.patterns import Assignment, Block


class Magnitude:
    """Removes the blocks of smallest sum of |weight| ** power.

    With scope `layer` each layer gets its own sparsity. With scope `global` one threshold on the mean of
    |weight| ** power decides over all layers that are not dense: their operation sparsity becomes what the assignment
    asks of them together, and each layer's follows from its weights.
    """

    def __init__(self, scope: Literal["layer", "global"] = "layer", power: Literal[1, 2] = 2) -> None:
        if scope not in ("layer", "global"):
            raise SpecError(f"the scope of magnitude pruning must be 'layer' or 'global', but got {scope!r}")
        if power not in (1, 2):
            raise SpecError(f"the power of magnitude pruning must be 1 or 2, but got {power!r}")
        self.scope = scope
        self.power = power

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        layers = _pruned_layers(network, assignment)
        if self.scope == "global":
            return Pruned(self._global_masks(model, layers, assignment))
        masks: Masks = {}
        for layer in layers:
            choice = assignment[layer.name]
            assert choice.pattern is not None
            try:
                matrix = block_mask(self._scores(model, layer), choice.pattern, choice.sparsity)
            except InputError as error:
                raise NetworkError(f"layer {layer.name!r}: {error}") from error
            masks[layer.name] = weight_from_matrix(matrix, get_weight(model, layer.name).shape)
        return Pruned(masks)

    def _global_masks(self, model: nn.Module, layers: list[Layer], assignment: Assignment) -> Masks:
        if not layers:
            return {}
        blocks: dict[str, Block] = {}
        for layer in layers:
            pattern = assignment[layer.name].pattern
            assert pattern is not None
            blocks[layer.name] = pattern
        macs = {layer.name: layer.op.macs * layer.calls for layer in layers}
        sparsity = sum(macs[name] * assignment[name].sparsity for name in macs) / sum(macs.values())
        costs = {name: macs[name] / get_weight(model, name).numel() for name in macs}
        scores = {layer.name: self._scores(model, layer) for layer in layers}
        matrices = block_masks(scores, blocks, min(sparsity, 1.0), costs)
        return {name: weight_from_matrix(matrix, get_weight(model, name).shape) for name, matrix in matrices.items()}

    def _scores(self, model: nn.Module, layer: Layer) -> torch.Tensor:
        """|weight| ** power as a weight matrix [N, K], float32."""
        return weight_matrix(get_weight(model, layer.name).detach()).float().abs() ** self.power


def _pruned_layers(network: Network, assignment: Assignment) -> list[Layer]:
    """The layers that are not dense, in the network's order. Raises NetworkError if a name is no prunable layer."""
    names = tuple(layer.name for layer in network.layers)
    for name in assignment:
        if name not in names:
            reasons = {kept.name: kept.reason for kept in network.kept_dense}
            why = f": {reasons[name]}" if name in reasons else did_you_mean(name, names)
            raise NetworkError(f"an assignment must name prunable layers, but {name!r} is none{why}")
    return [layer for layer in network.layers if layer.name in assignment and not assignment[layer.name].is_dense]
