"""Linear layers and convolutions, with what follows them fused."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import fx

from pruneaug.kernels.layers import copied_convolution
from pruneaug.kernels.planes import Planes
from pruneaug.kernels.products import conv_product, runs, token_product, vector_product
from pruneaug.kernels.variants import Variant, candidates, parse_variant
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import LinearOp, Op
from pruneaug.runtime.activations import CHANNELS_FIRST, CHANNELS_LAST, Activation, Held
from pruneaug.runtime.fusion import functions_after, sum_after
from pruneaug.runtime.graph import LayerCall, conv_op, layer_call
from pruneaug.runtime.lowering import Lowering, shape_of, with_channels
from pruneaug.runtime.steps import Source
from pruneaug.sparsity.masks import rows_alike
from pruneaug.sparsity.matrix import weight_matrix

_HEIGHTS = (16, 8, 4, 2)  # of blocks, as kernels see them


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


class _Fusion:
    """What a product takes over of the operators that follow it."""

    def __init__(self, lowering: Lowering, node: fx.Node) -> None:
        self._lowering = lowering
        self._taken = [node]
        self.epilogue = Epilogue()
        self.residual: list[Source] = []

    def take(self, result: Held, may_add: bool) -> None:
        """A sum with a tensor that is ready and lies like the result, then an activation and a clamp."""
        found = sum_after(self._last) if may_add else None
        if found is not None:
            total, other = found
            held = self._lowering.like(other, result) if self._lowering.is_ready(other) else None
            if held is not None:
                self.residual = [held.buffer]
                self.epilogue = replace(self.epilogue, residual=True)
                self._taken.append(total)
        self.take_functions()

    def take_functions(self) -> None:
        """An activation, then a clamp."""
        nodes, activation, clamp = functions_after(self._last)
        self.epilogue = replace(self.epilogue, activation=activation, clamp=clamp)
        self._taken += nodes

    def finish(self, result: Activation) -> Activation:
        """Let the operators taken have the result: the last one's readers want it, the others have no more."""
        self._lowering.values.update(dict.fromkeys(self._taken, result))
        return result

    @property
    def _last(self) -> fx.Node:
        return self._taken[-1]


def _weights(lowering: Lowering, call: LayerCall, op: Op) -> tuple[Weights, Variant]:
    """The layer's weights under its mask, and the variant that its plan names or the likeliest one."""
    mask = lowering.masks.get(call.name)
    matrix = weight_matrix(call.weight)
    keep = None if mask is None else weight_matrix(mask)
    plan = lowering.plans.get(call.name)
    return Weights(matrix, keep, call.bias), parse_variant(plan) if plan else _likeliest(lowering, op, keep)


def _likeliest(lowering: Lowering, op: Op, keep: torch.Tensor | None) -> Variant:
    target = lowering.target
    sparsity = 0.0 if keep is None else float(1 - keep.float().mean())
    rows = 1 if keep is None else rows_alike(keep, _HEIGHTS)
    return candidates(
        op, rows, sparsity, lanes=target.lanes, registers=target.registers, threads=target.threads
    )[0]  # fmt: skip


def _fitting(lowering: Lowering, variant: Variant, y: Planes) -> Variant:
    """`variant`, or a narrower one where its tile is wider than a run of positions."""
    if variant.positions:
        return variant
    most = runs(y, lowering.target.lanes)[1] // lowering.target.lanes
    return variant if variant.vectors <= most else replace(variant, vectors=most)


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source
