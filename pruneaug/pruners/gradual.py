"""Gradual pruning: any pruner, on the cubic schedule of Zhu and Gupta (2017, arXiv:1710.01878)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pruneaug.errors import SpecError
from pruneaug.network.layers import Network
from pruneaug.pruners import PRUNERS
from pruneaug.pruners.protocol import CalibrationData, Masks, Pruned, Pruner, Scorer
from pruneaug.pruners.schedule import Ramp
from pruneaug.sparsity.patterns import Assignment

_WAY = "way"


class Gradual:
    """Raises sparsity while fine-tuning; what goes is chosen anew at each step, from the weights as they are then.

    `pruner` and `options` name the method that chooses; it must be one that gives its masks at once. Sparsity is
    `initial` until the fraction `begin` of the fine-tuning and what is asked from `end` on, raised in `steps` steps:
    each runs the pruner, on the same calibration data. Its scores, if it has any, are those of the pruner.
    """

    def __init__(
        self,
        pruner: str = "magnitude",
        options: Mapping[str, Any] | None = None,
        begin: float = 0.0,
        end: float = 0.75,
        initial: float = 0.0,
        steps: int = 20,
    ) -> None:
        self.pruner: Pruner = PRUNERS.create(pruner, options or {})
        self.name = pruner
        self.ramp = Ramp(begin, end, initial, steps)
        if isinstance(self.pruner, Scorer):
            self.scores = self.pruner.scores

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        def masks_at(model: nn.Module, way: float) -> Masks:
            pruned = self.pruner.prune(model, network, self.ramp.assignment(assignment, way), data)
            if pruned.revise is not None:
                raise SpecError(
                    f"gradual pruning needs a pruner that gives its masks at once, but {self.name!r} raises the "
                    f"sparsity by itself; use {self.name!r} without 'gradual'"
                )
            return pruned.masks

        first = masks_at(model, 0.0)
        # What an interrupted fine-tuning must know to go on.
        state: dict[str, torch.Tensor] = {_WAY: torch.zeros((), dtype=torch.float64), **_stored(first)}

        def revise(model: nn.Module, progress: float) -> Masks:
            way = self.ramp.way(progress)
            if way != float(state[_WAY]):
                state.update(_stored(masks_at(model, way)))
                state[_WAY] = torch.tensor(way, dtype=torch.float64)
            return {name: state[f"mask {name}"] for name in first}

        return Pruned(first, revise, state=state)


def _stored(masks: Masks) -> dict[str, torch.Tensor]:
    return {f"mask {name}": mask.clone() for name, mask in masks.items()}
