"""Pooling of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pruneaug.kernels import pooling
from pruneaug.kernels.planes import token_planes
from pruneaug.runtime.activations import CHANNELS_FIRST, CHANNELS_LAST, Activation, Held
from pruneaug.runtime.lowering import Lowering, shape_of

Pair = tuple[int, int]


def max_pool2d(lowering: Lowering, node: fx.Node) -> Activation | None:
    kernel, stride, padding, dilation, _ = _arguments(node, 5, ([], 0, 1, False))
    step = _pair(stride) if stride else _pair(kernel)
    before = _pair(padding)

    def call(x: Any, y: Any) -> Any:
        return pooling.max_pool(x, y, _pair(kernel), step, (*before, *before), _pair(dilation), lowering.target.lanes)

    return _pooled(lowering, node, call)


def avg_pool2d(lowering: Lowering, node: fx.Node) -> Activation | None:
    kernel, stride, padding, _, with_padding, divisor = _arguments(node, 6, ([], 0, False, True, None))
    step = _pair(stride) if stride else _pair(kernel)
    before = _pair(padding)

    def call(x: Any, y: Any) -> Any:
        return pooling.avg_pool(
            x, y, _pair(kernel), step, (*before, *before), bool(with_padding), divisor, lowering.target.lanes
        )

    return _pooled(lowering, node, call)


def adaptive_avg_pool2d(lowering: Lowering, node: fx.Node) -> Activation | None:
    shape = shape_of(node)
    if shape[-2:] == (1, 1):
        return _mean(lowering, node)
    return _pooled(lowering, node, lambda x, y: pooling.adaptive_avg_pool(x, y, lowering.target.lanes))


def mean(lowering: Lowering, node: fx.Node) -> Activation | None:
    """The mean over an image's rows and columns; None for other dimensions."""
    source: Any = node.args[0]
    dims: Any = node.args[1]
    if len(shape_of(source)) != 4 or sorted(int(dim) % 4 for dim in dims or ()) != [2, 3] or "dtype" in node.kwargs:
        return None
    if lowering.held(source) is None:
        return None
    return _mean(lowering, node)


def _mean(lowering: Lowering, node: fx.Node) -> Activation | None:
    x = _image(lowering, node)
    if x is None:
        return None
    tokens = token_planes(1, x.planes.channels, x.planes.images, lowering.target.lanes)
    buffer = lowering.kernel(pooling.global_pool(x.planes, tokens, lowering.target.lanes), [x.buffer], "mean")
    shape = (x.planes.images, x.planes.channels)
    result = Activation(shape, torch.float32, None, Held(buffer, tokens, CHANNELS_LAST))
    if shape_of(node) == shape:
        return result
    return Activation(shape_of(node), torch.float32, lowering.plain_of(result))


def _pooled(lowering: Lowering, node: fx.Node, make: Any) -> Activation | None:
    x = _image(lowering, node)
    if x is None:
        return None
    y = lowering.layouts.image(*shape_of(node))
    call = make(x.planes, y)
    return lowering.result(node, lowering.kernel(call, [x.buffer], call.name), y, CHANNELS_FIRST)


def _image(lowering: Lowering, node: fx.Node) -> Held | None:
    source = node.args[0]
    if not isinstance(source, fx.Node) or len(shape_of(source)) != 4 or 0 in shape_of(node):
        return None
    return lowering.image(source)


def _arguments(node: fx.Node, count: int, defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    """The `count` arguments after the first, the last ones by default."""
    given = node.args[1:]
    return (*given, *defaults[len(given) - count + len(defaults) :]) if len(given) < count else given


def _pair(value: Any) -> Pair:
    values = [int(item) for item in value] if not isinstance(value, int) else [value]
    return values[0], values[-1]
