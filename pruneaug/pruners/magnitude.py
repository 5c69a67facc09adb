"""Magnitude pruning: a block matters as much as its weights are large."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from pruneaug.errors import SpecError
from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.choosing import Scope, check_scope, prune_by_scores
from pruneaug.pruners.protocol import CalibrationData, Pruned
from pruneaug.sparsity.patterns import Assignment


class Magnitude:
    """Removes the blocks of smallest sum of |weight| ** power (Han et al., 2015, for single weights)."""

    def __init__(self, scope: Scope = "layer", power: Literal[1, 2] = 2) -> None:
        if power not in (1, 2):
            raise SpecError(f"the power of magnitude pruning must be 1 or 2, but got {power!r}")
        self.scope = check_scope(scope, "magnitude")
        self.power = power

    def scores(self, model: nn.Module, network: Network, data: CalibrationData | None) -> dict[str, Tensor]:
        return {
            layer.name: get_weight(model, layer.name).detach().float().abs() ** self.power for layer in network.layers
        }

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        return prune_by_scores(self, model, network, assignment, data, self.scope)
