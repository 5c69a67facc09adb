"""Operators that only name values otherwise: views, permutations of the channels, and joining channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pruneaug.kernels.copies import concat_channels
from pruneaug.runtime.activations import Activation
from pruneaug.runtime.lowering import Lowering, shape_of, with_channels

_aten = torch.ops.aten

VIEWS = (
    _aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.flatten.using_ints,
    _aten.unflatten.int, _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.unsqueeze.default,
)  # fmt: skip
PERMUTATIONS = (_aten.permute.default, _aten.transpose.int, _aten.movedim.int)


def view(lowering: Lowering, node: fx.Node) -> Activation | None:
    """The same values in the same order under another shape: no step, but where the layout does not follow."""
    source: Any = node.args[0]
    if not lowering.is_ready(source):
        return None  # it joins the region that computes its input
    activation = lowering.value(source)
    viewed = activation.viewed(shape_of(node))
    if viewed is None:
        lowering.plain_of(activation)
        viewed = activation.viewed(shape_of(node))
    return viewed


def permute(lowering: Lowering, node: fx.Node) -> Activation | None:
    """Moving the channels of planes to the other end of the shape; None for other permutations."""
    source: Any = node.args[0]
    if lowering.held(source) is None:
        return None
    dims = len(shape_of(node))
    order = list(range(dims))
    if node.target is _aten.permute.default:
        order = [int(dim) % dims for dim in node.args[1]]  # type: ignore[arg-type, union-attr]
    elif node.target is _aten.transpose.int:
        first, second = (int(dim) % dims for dim in node.args[1:3])  # type: ignore[arg-type]
        order[first], order[second] = second, first
    else:
        moved, to = (int(dim) % dims for dim in node.args[1:3])  # type: ignore[arg-type]
        order.insert(to, order.pop(moved))
    for start, end in ((1, dims - 1), (dims - 1, 1)):
        expected = list(range(dims))
        expected.insert(end, expected.pop(start))
        if order == expected:
            moved_channels = lowering.value(source).moved(start, end)
            if moved_channels is not None:
                return moved_channels
    return None


def concatenate(lowering: Lowering, node: fx.Node) -> Activation | None:
    """Joining tensors along their channels, where these are in planes that differ in nothing else."""
    sources: Any = node.args[0]
    dim = int(node.args[1]) if len(node.args) > 1 else int(node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    shape = shape_of(node)
    dim %= len(shape)
    if not all(lowering.held(source) is not None for source in sources):
        return None
    first = lowering.held(sources[0])
    assert first is not None
    if dim != first.channel_dim % len(shape):
        return None
    helds = [lowering.held(source) for source in sources]
    if any(held is None or with_channels(held.planes, 1) != with_channels(first.planes, 1) for held in helds):
        return None
    if any(held is None or held.channel_dim != first.channel_dim for held in helds):
        return None
    planes = with_channels(first.planes, shape[dim])
    call = concat_channels(tuple(held.planes for held in helds if held is not None), planes, lowering.target.lanes)
    buffer = lowering.kernel(call, [held.buffer for held in helds if held is not None], "cat")
    return lowering.result(node, buffer, planes, first.channel_dim)
