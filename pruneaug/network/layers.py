"""The prunable layers of a PyTorch network, each with its op."""
from __future__ import annotations

from dataclasses import dataclass

from pruneaug.network.ops import Op


@dataclass(frozen=True, slots=True)
class Layer:
    """A prunable Linear or Conv2d: its module path, its op for the example input, and how often one forward calls it."""

    name: str
    op: Op
    calls: int = 1


@dataclass(frozen=True, slots=True)
class KeptDense:
    """A layer with weights that pruneaug leaves alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Network:
    """The prunable layers in the order in which they first run, and the layers that stay dense."""

    layers: tuple[Layer, ...]
    kept_dense: tuple[KeptDense, ...] = ()
