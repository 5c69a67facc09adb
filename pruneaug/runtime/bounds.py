"""Which inputs of a network are indices, and the numbers that they may hold.

An index that is computed inside the network is kept inside what it indexes. One that comes from outside can be checked
before the network runs: PyTorch raises an error for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten
Bounds = tuple[int, int]
"""The smallest and the largest number."""

_ALONG_A_DIMENSION = {
    _aten.gather.default, _aten.index_select.default, _aten.scatter.src, _aten.scatter.value, _aten.scatter_add.default,
    _aten.index_add.default, _aten.index_copy.default,
}  # fmt: skip
_BY_SEVERAL = {_aten.index.Tensor, _aten.index_put.default}
_SAME_VALUES = {
    _aten.reshape.default, _aten.flatten.using_ints, _aten.unsqueeze.default, _aten.squeeze.default, _aten.squeeze.dim,
    _aten.expand.default, _aten.permute.default, _aten.transpose.int, _aten.to.dtype, _aten._to_copy.default,
}  # fmt: skip


def index_bounds(graph: fx.GraphModule) -> list[Bounds | None]:
    """Of every tensor among the graph's inputs, in their order, what it may hold as an index; None if it is none."""
    bounds: dict[fx.Node, Bounds] = {}
    for node in graph.graph.nodes:
        for index, low, high in _indices(node):
            source = _source(index)
            if source is not None:
                lowest, highest = bounds.get(source, (low, high))
                bounds[source] = max(low, lowest), min(high, highest)
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return [bounds.get(node) for node in inputs if isinstance(node.meta.get("val"), torch.Tensor)]


def _indices(node: fx.Node) -> Iterator[tuple[Any, int, int]]:
    """The indices that an operator takes, each with the numbers that PyTorch accepts."""
    args: Any = node.args
    if node.target is _aten.embedding.default:
        yield args[1], 0, _sizes(args[0])[0] - 1
    elif node.target is _aten.one_hot.default and len(args) > 1 and args[1] > 0:
        yield args[0], 0, args[1] - 1
    elif node.target in _ALONG_A_DIMENSION and _sizes(args[0]):
        yield args[2], 0, _sizes(args[0])[args[1]] - 1
    elif node.target in _BY_SEVERAL:
        for index, size in zip(args[1], _sizes(args[0])):
            yield index, -size, size - 1


def _sizes(node: fx.Node) -> list[int]:
    return [int(size) for size in node.meta["val"].shape]


def _source(node: Any) -> fx.Node | None:
    """The input of integers that holds just what this node does, if there is one."""
    while isinstance(node, fx.Node) and node.target in _SAME_VALUES and node.meta["val"].dtype == torch.int64:
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "placeholder":
        return None
    value = node.meta.get("val")
    return node if isinstance(value, torch.Tensor) and value.dtype in (torch.int64, torch.int32) else None
