"""Fusing what follows a layer into it: batch-norms into its weight and bias, ReLUs and clamps into its kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pruneaug.kernels.weights import NO_CLAMP, RELU, Clamp
from pruneaug.runtime.graph import LayerCall, constant, layer_calls, only_user

_aten = torch.ops.aten
# Each operator's bounds where no argument gives them, and which bound each argument after the first gives.
_BOUNDS: dict[str, tuple[Clamp, tuple[int, ...]]] = {
    "relu": (RELU, ()),
    "relu6": ((0.0, 6.0), ()),
    "hardtanh": ((-1.0, 1.0), (0, 1)),
    "clamp": (NO_CLAMP, (0, 1)),
    "clamp_min": (NO_CLAMP, (0,)),
    "clamp_max": (NO_CLAMP, (1,)),
}
CLAMPS: dict[Any, tuple[Clamp, tuple[int, ...]]] = {
    getattr(_aten, name).default: bounds for name, bounds in _BOUNDS.items()
}

FUNCTIONS: dict[Any, str] = {
    _aten.silu.default: "silu", _aten.sigmoid.default: "sigmoid", _aten.tanh.default: "tanh",
    _aten.hardswish.default: "hardswish", _aten.hardsigmoid.default: "hardsigmoid", _aten.exp.default: "exp",
    _aten.mish.default: "mish", _aten.softplus.default: "softplus", _aten.elu.default: "elu",
}  # fmt: skip


def fold_batchnorms(graph: fx.GraphModule) -> int:
    """Fold every batch-norm that alone reads a convolution or linear layer into its weight and bias; how many."""
    folded = 0
    for call in list(layer_calls(graph)):
        norm = next(iter(call.node.users), None)
        # Of a linear layer's outputs with more dimensions, a batch-norm takes the second for channels.
        if norm is None or not _is_foldable(call, norm) or call.node.meta["val"].dim() != call.weight.dim():
            continue
        weight, bias = _folded(graph, call, norm)
        with graph.graph.inserting_before(call.node):
            nodes = []
            for kind, value in (("weight", weight), ("bias", bias)):
                graph.register_buffer(f"_folded_{folded}_{kind}", value)
                nodes.append(graph.graph.get_attr(f"_folded_{folded}_{kind}"))
        call.node.args = (call.node.args[0], *nodes, *call.node.args[3:])  # stride, padding, ... stay
        call.node.kwargs = {key: value for key, value in call.node.kwargs.items() if key != "bias"}
        call.node.meta["layer"] = call.name
        norm.replace_all_uses_with(call.node)
        graph.graph.erase_node(norm)
        folded += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return folded


def clamp_bounds(node: fx.Node) -> Clamp | None:
    """The bounds of a ReLU or clamp to numbers; None for any other operator."""
    if node.target not in CLAMPS or node.kwargs:
        return None
    defaults, indices = CLAMPS[node.target]
    bounds = list(defaults)
    for index, value in zip(indices, node.args[1:]):
        if value is not None:
            if not isinstance(value, int | float):
                return None
            bounds[index] = float(value)
    return bounds[0], bounds[1]


def activation_name(node: fx.Node) -> str | None:
    """The name in `pruneaug.kernels.functions` of an elementwise operator with its default arguments."""
    if node.target is _aten.gelu.default:
        return "gelu_tanh" if node.kwargs.get("approximate", "none") == "tanh" else "gelu"
    return FUNCTIONS.get(node.target) if len(node.args) == 1 and not node.kwargs else None


def sum_after(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The sum that alone reads a tensor, and what is added there if that is another tensor of its shape."""
    total = only_user(node)
    if total is None or total.target is not _aten.add.Tensor or total.kwargs:
        return None
    first, second = total.args
    other = second if first is node else first
    if not isinstance(other, fx.Node) or other is node or other.meta["val"].shape != node.meta["val"].shape:
        return None
    return total, other


def functions_after(node: fx.Node) -> tuple[list[fx.Node], str, Clamp]:
    """The activation, then the clamp, that alone read a tensor: those operators that there are, and what they compute.

    As in an `Epilogue`: "none" and NO_CLAMP where there is none.
    """
    found: list[fx.Node] = []
    activation, clamp = "none", NO_CLAMP
    user = only_user(node)
    if user is not None and (name := activation_name(user)) is not None:
        activation = name
        found.append(user)
        user = only_user(user)
    if user is not None and (bounds := clamp_bounds(user)) is not None:
        clamp = bounds
        found.append(user)
    return found, activation, clamp


def _is_foldable(call: LayerCall, norm: fx.Node) -> bool:
    """Whether `norm` is a batch-norm with fixed statistics of this call's result, and its only reader."""
    if norm.target is not _aten.batch_norm.default or len(call.node.users) > 1:
        return False
    x, _, _, mean, var, uses_batch_statistics, *_ = norm.args
    return x is call.node and mean is not None and var is not None and not uses_batch_statistics


def _folded(graph: fx.GraphModule, call: LayerCall, norm: fx.Node) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the layer and its batch-norm in one, computed in float64."""
    scale, shift, mean, var = (None if arg is None else constant(graph, arg).double() for arg in norm.args[1:5])
    eps: Any = norm.args[7]
    assert mean is not None
    assert var is not None
    factor = torch.rsqrt(var + eps) * (1.0 if scale is None else scale)  # [O]
    weight = call.weight.double() * factor.view(-1, *[1] * (call.weight.dim() - 1))
    bias = ((0.0 if call.bias is None else call.bias.double()) - mean) * factor + (0.0 if shift is None else shift)
    return weight.to(call.weight.dtype), bias.to(call.weight.dtype)
