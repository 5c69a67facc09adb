"""Where a trial begins: with the weights of the nearest finished trial, or with the dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pruneaug.network.layers import Network, get_weight
from pruneaug.pruners.protocol import Masks
from pruneaug.searcher.weights import MASKS, MODEL, load_tensors
from pruneaug.sparsity.masks import check_mask, mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import DENSE, Assignment, LayerChoice

_KEPT = 0.75
"""Least share of what a network keeps that its origin must keep too. Measured (docs/results.md): a network that began
with one of 0.8 times its density gained a little over the dense weights, with two thirds it lost."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The fine-tuned weights of a finished trial, a state dict, and its masks."""

    weights: Mapping[str, torch.Tensor]
    masks: Masks

    @classmethod
    def load(cls, folder: Path) -> Origin:
        """Raises RunError if the trial's weights are not there."""
        return cls(load_tensors(folder / MODEL), load_tensors(folder / MASKS))

    @torch.no_grad()
    def put_into(self, model: nn.Module) -> None:
        """Give `model` these weights, but where the masks removed them: there it keeps its own."""
        own = {name: get_weight(model, name).detach().clone() for name in self.masks}
        model.load_state_dict(self.weights)
        for name, mask in self.masks.items():
            weight = get_weight(model, name)
            weight.copy_(torch.where(mask.to(weight.device), weight, own[name]))

    def same_masks(self, masks: Masks, assignment: Assignment) -> Masks:
        """`masks`, with those of the finished trial for layers that had the same choice: its weights fit them."""
        return {name: self.masks[name] if self._fits(name, assignment[name]) else mask for name, mask in masks.items()}

    def _fits(self, name: str, choice: LayerChoice) -> bool:
        if name not in self.masks or choice.pattern is None:
            return False
        mask = weight_matrix(self.masks[name])
        rows, cols = choice.pattern.grid((mask.shape[0], mask.shape[1]))
        differs = abs(mask_sparsity(mask) - choice.sparsity)
        return differs <= 1 / (rows * cols) and check_mask(mask, choice.pattern)


def nearest(assignment: Assignment, finished: Mapping[int, Assignment], network: Network) -> int | None:
    """The trial whose weights fit best, of `finished` by number; None if the dense weights fit better.

    Of equally near ones, the latest. A trial that keeps much less than the network does is none: what it has learnt is
    how to do without the weights that come back.
    """
    distances = {
        number: distance(assignment, other, network)
        for number, other in finished.items()
        if kept_share(assignment, other, network) >= _KEPT
    }
    best = min(distances, key=lambda number: (distances[number], -number), default=None)
    if best is None or distances[best] >= distance(assignment, {}, network):
        return None
    return best


def kept_share(assignment: Assignment, origin: Assignment, network: Network) -> float:
    """Of the multiplications of a network, the fraction in which the origin has as many, layer by layer; 1 for none."""
    kept = both = 0.0
    for layer in network.layers:
        own = 1 - assignment.get(layer.name, DENSE).sparsity
        kept += layer.calls * layer.op.macs * own
        both += layer.calls * layer.op.macs * min(own, 1 - origin.get(layer.name, DENSE).sparsity)
    return both / kept if kept else 1.0


def distance(one: Assignment, other: Assignment, network: Network) -> float:
    """How many multiplications, as a fraction of all, meet a weight that one of two networks keeps and the other not.

    Two masks of one pattern and one layer are taken to be nested, those of different patterns to be independent.
    """
    costs = {layer.name: layer.calls * layer.op.macs for layer in network.layers}
    apart = sum(cost * _apart(one.get(name, DENSE), other.get(name, DENSE)) for name, cost in costs.items())
    return apart / sum(costs.values())


def _apart(one: LayerChoice, other: LayerChoice) -> float:
    if one.pattern == other.pattern or one.is_dense or other.is_dense:
        return abs(one.sparsity - other.sparsity)
    return one.sparsity * (1 - other.sparsity) + other.sparsity * (1 - one.sparsity)
