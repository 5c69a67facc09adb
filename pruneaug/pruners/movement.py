"""Movement pruning (Sanh et al., 2020, arXiv:2005.07683): keeps the weights that fine-tuning moves away from zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruneaug.errors import InputError, NetworkError
from pruneaug.network.layers import Layer, Network, get_weight
from pruneaug.pruners.choosing import Scope, check_scope, choose, pruned_layers
from pruneaug.pruners.protocol import CalibrationData, Masks, Pruned
from pruneaug.pruners.schedule import Ramp
from pruneaug.sparsity.patterns import Assignment


class Movement:
    """Scores are learned while fine-tuning: the sum over its steps of -weight * gradient; the largest stay.

    The sparsity follows the cubic schedule from dense at the fraction `begin` of the fine-tuning to what is asked at
    `end`. A weight that was removed keeps its value aside and its score goes on (the gradient passes straight through
    the mask), so it can come back. Needs a fine-tuner that calls `observe`; no calibration data.
    """

    def __init__(self, scope: Scope = "layer", begin: float = 0.1, end: float = 0.75) -> None:
        self.scope = check_scope(scope, "movement")
        self.ramp = Ramp(begin, end)

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        layers = pruned_layers(network, assignment)
        if not layers:
            return Pruned({})
        moved = _Moved(model, layers, assignment, self.scope, self.ramp)
        first = {name: mask.clone() for name, mask in moved.masks().items()}
        return Pruned(first, moved.revise, moved.observe, moved.state)


class _Moved:
    """The scores of one fine-tuning. `state` holds all that changes, for a fine-tuning that is interrupted."""

    def __init__(
        self, model: nn.Module, layers: tuple[Layer, ...], assignment: Assignment, scope: Scope, ramp: Ramp
    ) -> None:
        self._layers, self._assignment, self._scope, self._ramp = layers, assignment, scope, ramp
        self.state = {"steps": torch.zeros((), dtype=torch.int64)}
        for layer in layers:
            weight = get_weight(model, layer.name).detach()
            self.state[f"score {layer.name}"] = torch.zeros_like(weight, dtype=torch.float32)
            self.state[f"aside {layer.name}"] = torch.zeros_like(weight)  # values of removed weights, else 0
            self.state[f"mask {layer.name}"] = torch.ones_like(weight, dtype=torch.bool)

    def masks(self) -> Masks:
        return {layer.name: self.state[f"mask {layer.name}"] for layer in self._layers}

    @torch.no_grad()
    def observe(self, model: nn.Module) -> None:
        """Learn from the gradients of a step, and keep those of removed weights from the optimizer."""
        self.state["steps"] += 1
        for layer in self._layers:
            weight = get_weight(model, layer.name)
            if weight.grad is None:
                raise NetworkError(
                    f"layer {layer.name!r} got no gradient in fine-tuning: the loss does not depend on its weight, or "
                    "it is frozen; keep it dense, or choose another pruner"
                )
            aside, mask = self._of("aside", layer, weight), self._of("mask", layer, weight)
            self._of("score", layer, weight).sub_((weight + aside) * weight.grad)
            weight.grad.masked_fill_(~mask, 0.0)

    @torch.no_grad()
    def revise(self, model: nn.Module, progress: float) -> Masks:
        targets = self._ramp.assignment(self._assignment, self._ramp.way(progress))
        if all(choice.sparsity == 0 for choice in targets.values()):
            return self.masks()
        if not self.state["steps"]:
            raise InputError(
                "movement pruning learns from the gradients of fine-tuning, but saw none before the sparsity rises; "
                "use a fine-tuner that calls `observe` after each backward pass, for more than one step"
            )
        scores = {layer.name: self._of("score", layer, get_weight(model, layer.name)) for layer in self._layers}
        for name, mask in choose(scores, self._layers, targets, self._scope).items():
            weight = get_weight(model, name)
            whole = weight + self.state[f"aside {name}"]
            weight.copy_(whole.masked_fill(~mask, 0.0))  # what comes back does so with its value
            self.state[f"aside {name}"] = whole.masked_fill(mask, 0.0)
            self.state[f"mask {name}"] = mask
        return self.masks()

    def _of(self, what: str, layer: Layer, weight: Tensor) -> Tensor:
        key = f"{what} {layer.name}"
        if self.state[key].device != weight.device:
            self.state[key] = self.state[key].to(weight.device)
        return self.state[key]
