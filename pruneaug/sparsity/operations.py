"""Operation sparsity: the fraction of a network's multiplications that its masks remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from pruneaug.errors import InputError
from pruneaug.sparsity.masks import mask_sparsity


class CostedOp(Protocol):
    """An op that knows its multiply-accumulates."""

    @property
    def macs(self) -> int: ...


class CostedLayer(Protocol):
    """A named layer, its op, and how often one forward calls it: `pruneaug.network.layers.Layer`."""

    @property
    def name(self) -> str: ...
    @property
    def op(self) -> CostedOp: ...
    @property
    def calls(self) -> int: ...


class CostedNetwork(Protocol):
    """The prunable layers of a network: `pruneaug.network.layers.Network`."""

    @property
    def layers(self) -> Sequence[CostedLayer]: ...


def operation_sparsity(network: CostedNetwork, masks: Mapping[str, torch.Tensor]) -> float:
    """The fraction of the prunable layers' multiplications that `masks` (layer name -> mask, any layout) remove.

    A layer without a mask is dense. Multiplications of layers that are never pruned are not counted.
    """
    macs = {layer.name: layer.op.macs * layer.calls for layer in network.layers}
    if unknown := [name for name in masks if name not in macs]:
        raise InputError(f"masks must be of prunable layers, but these are none: {', '.join(unknown)}")
    removed = sum(macs[name] * mask_sparsity(mask) for name, mask in masks.items())
    return removed / sum(macs.values())
