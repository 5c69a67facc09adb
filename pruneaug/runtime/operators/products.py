"""Linear layers and convolutions, with what follows them fused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from pruneaug.kernels.functions import ACTIVATIONS
from pruneaug.kernels.layers import copied_convolution
from pruneaug.kernels.planes import Planes
from pruneaug.kernels.products import conv_product, runs, token_product, vector_product
from pruneaug.kernels.variants import Variant, candidates
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import Conv2dOp, LinearOp, Op
from pruneaug.runtime.activations import CHANNELS_FIRST, CHANNELS_LAST, Activation, Held
from pruneaug.runtime.fusion import clamp_bounds
from pruneaug.runtime.graph import LayerCall, layer_call
from pruneaug.runtime.lowering import Lowering, shape_of, with_channels
from pruneaug.runtime.steps import Source
from pruneaug.sparsity.matrix import weight_matrix

_aten = torch.ops.aten


def linear(lowering: Lowering, node: fx.Node) -> Activation | None:
    """A linear layer: for one token from plain to plain memory, else from planes to planes."""
    call = layer_call(lowering.graph, node)
    if call is None or call.weight.dtype != torch.float32:
        return None
    *batch, channels = call.shape
    rows = call.weight.shape[0]
    if math.prod(batch) == 1:
        op = LinearOp(1, channels, rows)
        weights, variant = _weights(lowering, call, op)
        fusion = _Fusion(lowering, node)
        fusion.take_functions()
        kernel = vector_product(weights, variant, lowering.target, fusion.epilogue)
        buffer = lowering.kernel(kernel, [lowering.plain(_input(node))], call.name)
        return fusion.finish(Activation(shape_of(node), torch.float32, buffer))
    x = lowering.tokens(_input(node))
    if x is None:
        return None
    op = LinearOp(math.prod(batch), channels, rows)
    weights, variant = _weights(lowering, call, op)
    y = with_channels(x.planes, rows)
    variant = _fitting(lowering, variant, y)
    fusion = _Fusion(lowering, node)
    fusion.take(Held(x.buffer, y, CHANNELS_LAST), rows % variant.height == 0)
    kernel = token_product(x.planes, y, weights, variant, lowering.target, fusion.epilogue)
    buffer = lowering.kernel(kernel, [x.buffer, *fusion.residual], call.name)
    return fusion.finish(lowering.result(node, buffer, y, CHANNELS_LAST))


def conv2d(lowering: Lowering, node: fx.Node) -> Activation | None:
    """A convolution of images, grouped ones included."""
    call = layer_call(lowering.graph, node)
    if call is None or call.weight.dtype != torch.float32 or 0 in call.shape:
        return None
    op = conv_op(call)
    weights, variant = _weights(lowering, call, op)
    y = lowering.layouts.output(op)
    variant = _fitting(lowering, variant, y)
    fusion = _Fusion(lowering, node)
    if variant.positions or lowering.layouts.reads_in_place(op):
        x = lowering.image(_input(node))
        assert x is not None
        fusion.take(Held(x.buffer, y, CHANNELS_FIRST), op.out_channels % variant.height == 0)
        kernel = conv_product(op, x.planes, y, weights, variant, lowering.target, fusion.epilogue)
        buffer = lowering.kernel(kernel, [x.buffer, *fusion.residual], call.name)
        return fusion.finish(lowering.result(node, buffer, y, CHANNELS_FIRST))
    # A copy of the phases is due anyway, so plain memory serves as well as planes.
    held = lowering.held(_input(node))
    in_planes = (
        held is not None
        and held.channel_dim == CHANNELS_FIRST
        and (held.planes.rows, held.planes.cols) == (op.height, op.width)
    )
    source: Source = held.buffer if in_planes and held is not None else lowering.plain(_input(node))
    fusion.take(Held(source, y, CHANNELS_FIRST), op.out_channels % variant.height == 0)
    layout = held.planes if in_planes and held is not None else (op.batch, op.in_channels, op.height, op.width)
    copy, kernel = copied_convolution(
        op, layout, y, lowering.layouts, weights, variant, lowering.target, fusion.epilogue
    )
    copied = lowering.kernel(copy, [source], call.name)
    buffer = lowering.kernel(kernel, [copied, *fusion.residual], call.name)
    return fusion.finish(lowering.result(node, buffer, y, CHANNELS_FIRST))


def conv_op(call: LayerCall) -> Conv2dOp:
    """The op of a conv2d node on images [batch, channels, rows, cols]."""
    arguments: dict[str, Any] = dict(
        zip(("x", "weight", "bias", "stride", "padding", "dilation", "groups"), call.node.args)
    )
    arguments |= call.node.kwargs
    kernel = (int(call.weight.shape[2]), int(call.weight.shape[3]))
    dilation = _pair(arguments.get("dilation", 1))
    padding = arguments.get("padding", 0)
    if padding == "valid":
        around = (0, 0, 0, 0)
    elif padding == "same":  # PyTorch puts the odd one at the bottom and at the right
        totals = [step * (size - 1) for step, size in zip(dilation, kernel)]
        around = (totals[0] // 2, totals[1] // 2, totals[0] - totals[0] // 2, totals[1] - totals[1] // 2)
    else:
        rows, cols = _pair(padding)
        around = (rows, cols, rows, cols)
    batch, channels, height, width = call.shape
    return Conv2dOp(
        batch, channels, int(call.weight.shape[0]), height, width, kernel, _pair(arguments.get("stride", 1)), around,
        dilation, int(arguments.get("groups", 1)),
    )  # fmt: skip


class _Fusion:
    """What a product takes over of the operators that follow it."""

    def __init__(self, lowering: Lowering, node: fx.Node) -> None:
        self._lowering = lowering
        self._taken = [node]
        self.epilogue = Epilogue()
        self.residual: list[Source] = []

    def take(self, result: Held, may_add: bool) -> None:
        """A sum with a tensor that is ready and lies like the result, then an activation and a clamp."""
        user = _only_user(self._last)
        if may_add and user is not None and user.target is _aten.add.Tensor and not user.kwargs:
            first, second = user.args
            other = second if first is self._last else first
            held = self._residual(other, result) if isinstance(other, fx.Node) else None
            if held is not None:
                self.residual = [held.buffer]
                self.epilogue = replace(self.epilogue, residual=True)
                self._taken.append(user)
        self.take_functions()

    def _residual(self, other: fx.Node, result: Held) -> Held | None:
        if other is self._last or shape_of(other) != shape_of(self._last) or not self._lowering.is_ready(other):
            return None
        return self._lowering.like(other, result)

    def take_functions(self) -> None:
        """An activation, then a clamp."""
        user = _only_user(self._last)
        name = None if user is None else activation_name(user)
        if user is not None and name is not None:
            self.epilogue = replace(self.epilogue, activation=name)
            self._taken.append(user)
            user = _only_user(self._last)
        bounds = None if user is None else clamp_bounds(user)
        if user is not None and bounds is not None:
            self.epilogue = replace(self.epilogue, clamp=bounds)
            self._taken.append(user)

    def finish(self, result: Activation) -> Activation:
        """Let the operators taken have the result: the last one's readers want it, the others have no more."""
        self._lowering.values.update(dict.fromkeys(self._taken, result))
        return result

    @property
    def _last(self) -> fx.Node:
        return self._taken[-1]


FUNCTIONS: dict[Any, str] = {
    _aten.silu.default: "silu", _aten.sigmoid.default: "sigmoid", _aten.tanh.default: "tanh",
    _aten.hardswish.default: "hardswish", _aten.hardsigmoid.default: "hardsigmoid", _aten.exp.default: "exp",
    _aten.mish.default: "mish", _aten.softplus.default: "softplus", _aten.elu.default: "elu",
}  # fmt: skip


def activation_name(node: fx.Node) -> str | None:
    """The name in `pruneaug.kernels.functions` of an elementwise operator with its default arguments."""
    if node.target is _aten.gelu.default:
        return "gelu_tanh" if node.kwargs.get("approximate", "none") == "tanh" else "gelu"
    name = FUNCTIONS.get(node.target) if len(node.args) == 1 and not node.kwargs else None
    return name if name in ACTIVATIONS else None


def _weights(lowering: Lowering, call: LayerCall, op: Op) -> tuple[Weights, Variant]:
    """The layer's weights under its mask, and the variant that its plan names or the likeliest one."""
    mask = lowering.masks.get(call.name)
    matrix = weight_matrix(call.weight)
    keep = None if mask is None else weight_matrix(mask)
    plan = lowering.plans.get(call.name)
    variant = None if plan is None else plan.variant
    return Weights(matrix, keep, call.bias), variant or _likeliest(lowering, op, keep)


def _likeliest(lowering: Lowering, op: Op, keep: torch.Tensor | None) -> Variant:
    target = lowering.target
    sparsity = 0.0 if keep is None else float(1 - keep.float().mean())
    rows = 1 if keep is None else _block_rows(keep)
    return candidates(
        op, rows, sparsity, lanes=target.lanes, registers=target.registers, threads=target.threads
    )[0]  # fmt: skip


def _fitting(lowering: Lowering, variant: Variant, y: Planes) -> Variant:
    """`variant`, or a narrower one where its tile is wider than a run of positions."""
    if variant.positions:
        return variant
    most = runs(y, lowering.target.lanes)[1] // lowering.target.lanes
    return variant if variant.vectors <= most else replace(variant, vectors=most)


def _block_rows(keep: torch.Tensor) -> int:
    """The height of the mask's blocks as kernels see it: the largest group of rows whose masks are all the same."""
    for rows in (16, 8, 4, 2):
        first = torch.arange(len(keep)) // rows * rows  # the first row of each row's group
        if rows <= len(keep) and bool((keep == keep[first]).all()):
            return rows
    return 1


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = [int(item) for item in value]
    return (values[0], values[-1])
