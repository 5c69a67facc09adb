"""SynFlow: iterative synaptic flow pruning (Tanaka et al., 2020, arXiv:2006.05467)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from pruneaug.errors import NetworkError, SpecError
from pruneaug.network.layers import Network, apply_masks, get_weight
from pruneaug.pruners.calibration import calibration_batches, looked_at, required
from pruneaug.pruners.choosing import Scope, check_scope, choose, pruned_layers
from pruneaug.pruners.gradients import check_reached
from pruneaug.pruners.linearised import Linearised, ones_like_inputs, positive_copy, total_of
from pruneaug.pruners.protocol import CalibrationData, Masks, Pruned
from pruneaug.sparsity.patterns import Assignment


class SynFlow:
    """Removes the weights that carry least flow from an input of ones to the output, in many small rounds.

    The flow R is the sum of the outputs of the network with all its weights made positive; a weight's score is
    weight * dR/dweight. Of the calibration data only the shapes are read. After round k of `iterations` the fraction of
    weights kept is density ** (k / iterations), scored anew each time, so that no layer is emptied before others.
    `pruneaug.pruners.linearised` says what becomes of norms, activations, attention and integer inputs.
    """

    def __init__(self, scope: Scope = "layer", iterations: int = 100) -> None:
        if iterations < 1:
            raise SpecError(f"`iterations` of synflow pruning must be at least 1, but got {iterations}")
        self.scope = check_scope(scope, "synflow")
        self.iterations = iterations

    def scores(self, model: nn.Module, network: Network, data: CalibrationData | None) -> dict[str, Tensor]:
        """The scores of the first round."""
        inputs = _inputs(model, required(data, "synflow"))
        with looked_at(model, network):
            return synaptic_flow(positive_copy(model), network, inputs)

    def prune(self, model: nn.Module, network: Network, assignment: Assignment, data: CalibrationData | None) -> Pruned:
        layers = pruned_layers(network, assignment)
        if not layers:
            return Pruned({})
        inputs = _inputs(model, required(data, "synflow"))
        masks: Masks = {}
        with looked_at(model, network):
            positive = positive_copy(model)
            for targets in _rounds(assignment, self.iterations):
                scores = synaptic_flow(positive, Network(layers), inputs)
                for name, mask in masks.items():
                    scores[name] = scores[name].masked_fill(~mask, -1.0)  # what is removed stays removed
                masks = choose(scores, layers, targets, self.scope)
                apply_masks(positive, masks)
        return Pruned(masks)


def synaptic_flow(positive: nn.Module, network: Network, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """weight * dR/dweight of each layer of a positive network, float32, at least 0.

    Divided by R: in a chain of layers the scores of each layer sum to 1. All are 0 once no flow is left.
    """
    weights = {layer.name: get_weight(positive, layer.name) for layer in network.layers}
    with torch.enable_grad(), Linearised():
        flow = total_of(positive(*inputs))
    if not isinstance(flow, Tensor) or not flow.requires_grad:
        check_reached(weights, [None] * len(weights))
    assert isinstance(flow, Tensor)
    if not flow.isfinite():
        raise NetworkError(
            f"the flow of synflow pruning must be finite, but is {flow.item()} for this network; check that its "
            "weights are finite, or choose another pruner, for example 'taylor'"
        )
    found = check_reached(weights, torch.autograd.grad(flow, list(weights.values()), allow_unused=True))
    total = flow.detach() if flow != 0 else 1.0
    return {name: (weight.detach() * found[name] / total).abs().float() for name, weight in weights.items()}


def _rounds(assignment: Assignment, count: int) -> Iterator[Assignment]:
    """The assignment with the density of each layer raised to the power of 1/count, 2/count, ... 1."""
    for step in range(1, count):
        yield {
            name: replace(choice, sparsity=1 - (1 - choice.sparsity) ** (step / count))
            for name, choice in assignment.items()
        }
    yield assignment


def _inputs(model: nn.Module, data: CalibrationData) -> tuple[Tensor, ...]:
    (batch,) = calibration_batches(data, 1)
    return ones_like_inputs(batch, next(model.parameters()).device)
