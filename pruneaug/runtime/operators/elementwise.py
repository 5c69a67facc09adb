"""Operators on single values: activations, clamps, sums and products with activations or constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from pruneaug.kernels import elementwise
from pruneaug.kernels.elementwise import BinaryOp
from pruneaug.runtime.activations import CHANNELS_FIRST, Activation, Held
from pruneaug.runtime.fusion import CLAMPS, FUNCTIONS, activation_name, clamp_bounds
from pruneaug.runtime.lowering import Lowering, operator_name, shape_of

_aten = torch.ops.aten
UNARY = (*FUNCTIONS, _aten.gelu.default, *CLAMPS)
BINARY: dict[Any, BinaryOp] = {
    _aten.add.Tensor: "add", _aten.sub.Tensor: "sub", _aten.mul.Tensor: "mul", _aten.div.Tensor: "div",
    _aten.add.Scalar: "add", _aten.sub.Scalar: "sub", _aten.mul.Scalar: "mul", _aten.div.Scalar: "div",
}  # fmt: skip


def unary(lowering: Lowering, node: fx.Node) -> Activation | None:
    """An activation or clamp of a tensor in planes; None for one in plain memory."""
    held = lowering.held(node.args[0])
    if held is None:
        return None
    name, bounds = activation_name(node), clamp_bounds(node)
    if name is None and bounds is None:
        return None
    clamp = {} if bounds is None else {"low": bounds[0], "high": bounds[1]}
    call = elementwise.unary(held.planes, name or "none", lowering.target.lanes, **clamp)
    return _result(lowering, node, call, [held.buffer], held)


def binary(lowering: Lowering, node: fx.Node) -> Activation | None:
    """A tensor in planes with a tensor in the same planes, one value an image and channel, or constants."""
    if node.kwargs or len(node.args) != 2 or node.meta["val"].dtype != torch.float32:
        return None
    x, other = node.args
    op = BINARY[node.target]
    is_whole = lowering.held(x) is not None and isinstance(x, fx.Node) and shape_of(x) == shape_of(node)
    if not is_whole and op in ("add", "mul"):
        x, other = other, x
    held = lowering.held(x)
    if held is None or not isinstance(x, fx.Node) or shape_of(x) != shape_of(node):
        return None
    lanes = lowering.target.lanes
    values = _constants(lowering, other, held, shape_of(node))
    if values is not None:
        return _result(lowering, node, elementwise.binary(held.planes, op, values, lanes), [held.buffer], held)
    if not isinstance(other, fx.Node):
        return None
    if shape_of(other) == shape_of(node):
        same = lowering.like(other, held)
        if same is None:
            return None
        call = elementwise.binary(held.planes, op, same.planes, lanes)
        return _result(lowering, node, call, [held.buffer, same.buffer], held)
    if held.channel_dim == CHANNELS_FIRST and shape_of(other) == (*shape_of(node)[:2], 1, 1):
        factors = _factors(lowering, other)
        if factors is None:
            return None
        call = elementwise.binary(held.planes, op, factors.planes, lanes)
        return _result(lowering, node, call, [held.buffer, factors.buffer], held)
    return None


def batch_norm(lowering: Lowering, node: fx.Node) -> Activation | None:
    """A batch-norm that no product took: a factor and a summand for each channel."""
    source, *parameters = node.args
    scale, shift, mean, var = (lowering.constant(parameter) for parameter in parameters[:4])
    held = lowering.held(source)
    if held is None or held.channel_dim != CHANNELS_FIRST or mean is None or var is None or node.args[5]:
        return None
    eps: Any = node.args[7]
    factor = torch.rsqrt(var.double() + eps) * (1.0 if scale is None else scale.double())
    summand = (0.0 if shift is None else shift.double()) - mean.double() * factor
    lanes = lowering.target.lanes
    scaled = lowering.kernel(elementwise.binary(held.planes, "mul", _array(factor), lanes), [held.buffer], "batch_norm")
    call = elementwise.binary(held.planes, "add", _array(summand), lanes)
    return _result(lowering, node, call, [scaled], held)


def _result(lowering: Lowering, node: fx.Node, call: Any, inputs: list[Any], held: Held) -> Activation:
    return lowering.result(node, lowering.kernel(call, inputs, operator_name(node)), held.planes, held.channel_dim)


def _constants(lowering: Lowering, other: Any, held: Held, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """A number, or one value for each channel: float32 [1] or [channels]; None for anything else."""
    if isinstance(other, int | float):
        return np.array([other], np.float32)
    value = lowering.constant(other)
    if value is None or not value.is_floating_point():
        return None
    if value.numel() == 1 and value.dim() <= len(shape):
        return _array(value)
    aligned = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
    expected = [1] * len(shape)
    expected[held.channel_dim] = held.planes.channels
    return _array(value) if list(aligned) == expected else None


def _factors(lowering: Lowering, node: fx.Node) -> Held | None:
    """A tensor [images, channels, 1, 1] as token planes [1, images, channels]."""
    activation = lowering.value(node)
    tokens = Activation(activation.shape[:2], activation.dtype, lowering.plain_of(activation))
    return lowering.tokens_of(tokens)


def _array(value: torch.Tensor) -> npt.NDArray[np.float32]:
    return value.detach().float().reshape(-1).numpy()
