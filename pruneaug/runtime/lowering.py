"""Lowering: an exported graph becomes steps, kernels wherever there is one and regions of other operators between."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from pruneaug.errors import CompileError
from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.copies import (
    image_to_tokens,
    phase_copy,
    to_plain_image,
    to_plain_tokens,
    tokens_from_plain,
)
from pruneaug.kernels.layers import to_memory
from pruneaug.kernels.layouts import Layouts
from pruneaug.kernels.planes import Planes, token_planes
from pruneaug.runtime.activations import CHANNELS_FIRST, CHANNELS_LAST, Activation, Held
from pruneaug.runtime.fallback import check_value, extract_region
from pruneaug.runtime.graph import constant, module_path
from pruneaug.runtime.plan import Plans
from pruneaug.runtime.steps import Buffer, KernelStep, Literal, RegionStep, Source, Steps

Handler = Callable[["Lowering", fx.Node], Activation | None]


class Lowering:
    """The state of one lowering: what holds each node's value, and the steps so far.

    A node's handler returns its activation, or None where it has no kernel for it; then the node waits in `_pending`
    until a kernel needs what it computes, and all that wait become one region.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        target: CpuTarget,
        layouts: Layouts,
        masks: Mapping[str, torch.Tensor],
        plans: Plans,
    ) -> None:
        self.graph = graph
        self.target = target
        self.layouts = layouts
        self.masks = masks
        self.plans = plans
        self.steps = Steps()
        self.values: dict[fx.Node, Activation] = {}
        self._pending: list[fx.Node] = []

    def run(self, handlers: Mapping[Any, Handler]) -> Steps:
        """Lower every node of the graph."""
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self._input(node)
            elif node.op == "output":
                self._outputs(node)
            elif node.op == "call_function" and node not in self.values and node not in self._pending:
                handler = handlers.get(node.target)
                result = None if handler is None else handler(self, node)
                if result is not None:
                    self.values.setdefault(node, result)
                elif node not in self.values:
                    self._wait(node)
        return self.steps

    # What handlers ask

    def constant(self, node: Any) -> torch.Tensor | None:
        """The value of a parameter or buffer; None for any other argument."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return constant(self.graph, node)
        return None

    def held(self, node: Any) -> Held | None:
        """The planes that hold a node's value, if some do."""
        activation = self.values.get(node) if isinstance(node, fx.Node) else None
        return None if activation is None else activation.held

    def is_ready(self, node: Any) -> bool:
        """Whether the node's value is computed by the steps so far, or a constant."""
        return isinstance(node, fx.Node) and (node in self.values or node.op == "get_attr")

    def value(self, node: fx.Node) -> Activation:
        """The activation of a node; what waits is computed first."""
        if node.op == "get_attr":
            return self._literal(node)
        if node not in self.values:
            self._flush()
        return self.values[node]

    def plain(self, node: fx.Node) -> Source:
        """The node's value in contiguous memory."""
        return self.plain_of(self.value(node))

    def plain_of(self, activation: Activation) -> Source:
        if activation.plain is None:
            held = activation.held
            assert held is not None
            if held.channel_dim == CHANNELS_LAST:
                held = self._compact(held)
            convert = to_plain_image if held.channel_dim == CHANNELS_FIRST else to_plain_tokens
            call = convert(held.planes, self.target.lanes)
            activation.plain = self.kernel(call, [held.buffer], "layout")
        return activation.plain

    def image(self, node: fx.Node) -> Held | None:
        """A tensor [images, channels, rows, cols] in the planes of its size; None for other tensors."""
        activation = self.value(node)
        if len(activation.shape) != 4 or activation.dtype != torch.float32 or 0 in activation.shape:
            return None
        planes = self.layouts.image(*activation.shape)
        held = activation.held
        # A view may have left it in planes of another size: tokens, or an image of other rows.
        if held is not None and held.channel_dim == CHANNELS_FIRST and held.planes == planes:
            return held
        call = phase_copy(_four(activation.shape), planes, ((0, 0),), (1, 1), self.target.lanes)
        activation.held = Held(self._convert(call, activation, planes), planes, CHANNELS_FIRST)
        return activation.held

    def tokens(self, node: fx.Node) -> Held | None:
        """A tensor [..., channels] in planes, its other dimensions along the positions; None for other tensors."""
        return self.tokens_of(self.value(node))

    def tokens_of(self, activation: Activation) -> Held | None:
        if activation.held is not None and activation.held.channel_dim == CHANNELS_LAST:
            return activation.held
        if len(activation.shape) < 2 or activation.dtype != torch.float32 or 0 in activation.shape:
            return None
        *batch, channels = activation.shape
        images, tokens = (batch[0], math.prod(batch[1:])) if len(batch) > 1 else (1, batch[0])
        planes = token_planes(images, channels, tokens, self.target.lanes)
        call = tokens_from_plain(planes, self.target.lanes)
        activation.held = Held(self._convert(call, activation, planes), planes, CHANNELS_LAST)
        return activation.held

    def sequences(self, node: fx.Node) -> Held | None:
        """A tensor [images, tokens, channels] in planes of so many images, without gaps between rows of an image."""
        activation = self.value(node)
        held = activation.held
        if held is not None and held.planes.images != activation.shape[0]:
            self.plain_of(activation)
            activation.held = None  # a view has left it in planes of other images
        held = self.tokens_of(activation)
        if held is not None:
            held = activation.held = self._compact(held)
        return held

    def like(self, node: fx.Node, held: Held) -> Held | None:
        """The node's value in the same planes as `held`; None where that takes more than one conversion."""
        other = self.image(node) if held.channel_dim == CHANNELS_FIRST else self.tokens(node)
        return other if other is not None and other.planes == held.planes else None

    def kernel(self, call: KernelCall, inputs: list[Source], origin: str) -> Buffer:
        """Add a step that runs `call`, and return what it writes."""
        output = Buffer(call.size)
        self.steps.steps.append(KernelStep(call, tuple(inputs), output, origin))
        return output

    def result(self, node: fx.Node, buffer: Source, planes: Planes, channel_dim: int) -> Activation:
        """The activation of a node that a kernel has written into planes."""
        return Activation(shape_of(node), torch.float32, None, Held(buffer, planes, channel_dim))

    def _convert(self, call: KernelCall, activation: Activation, planes: Planes) -> Source:
        """Plain memory in planes; that of a constant is converted now."""
        if isinstance(activation.plain, Literal):
            values = torch.from_numpy(activation.plain.values).view(activation.shape)
            return Literal(to_memory(values, planes).numpy())
        return self.kernel(call, [self.plain_of(activation)], "layout")

    def _compact(self, held: Held) -> Held:
        """The same tokens in token planes: without gaps between rows of images, and without a border before them."""
        planes = held.planes
        if planes.rows == 1 and planes.lead == 0:
            return held
        compact = token_planes(planes.images, planes.channels, planes.rows * planes.cols, self.target.lanes)
        call = image_to_tokens(planes, compact, self.target.lanes)
        return Held(self.kernel(call, [held.buffer], "layout"), compact, CHANNELS_LAST)

    # The graph's ends, and what has no kernel

    def _input(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return  # a Python value, which the export has made a constant
        buffer = Buffer(value.numel(), value.dtype)
        self.values[node] = Activation(tuple(value.shape), value.dtype, buffer)
        self.steps.inputs.append((buffer, tuple(value.shape)))

    def _outputs(self, node: fx.Node) -> None:
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(node.args[0]) if isinstance(leaf, fx.Node)]
        for leaf in leaves:
            self.value(leaf)
        self.steps.outputs += [(self.plain(leaf), self.value(leaf).shape) for leaf in leaves]

    def _literal(self, node: fx.Node) -> Activation:
        if node not in self.values:
            value = constant(self.graph, node).detach().contiguous()
            self.values[node] = Activation(tuple(value.shape), value.dtype, Literal(value.numpy().reshape(-1)))
        return self.values[node]

    def _wait(self, node: fx.Node) -> None:
        self._pending.append(node)
        if not isinstance(node.meta.get("val"), tuple | list):
            check_value(node)
            return
        # The items of a tuple are read where it is made: a region returns tensors.
        for user in node.users:
            if user.target is not operator.getitem:
                raise CompileError(
                    f"{user.target} must read single tensors, but reads all that {node.target} returns; this is a bug, "
                    "please report it"
                )
            self._wait(user)

    def _flush(self) -> None:
        nodes, self._pending = self._pending, []
        region = extract_region(self.graph, nodes)
        inputs = tuple((self.plain(node), self.value(node).shape) for node in region.inputs)
        outputs = tuple(Buffer(node.meta["val"].numel(), node.meta["val"].dtype) for node in region.outputs)
        for node, buffer in zip(region.outputs, outputs):
            self.values[node] = Activation(shape_of(node), buffer.dtype, buffer)
        names = dict.fromkeys(operator_name(node) for node in nodes)
        modules = dict.fromkeys(path for node in nodes if (path := module_path(node)))
        self.steps.steps.append(RegionStep(region, inputs, outputs, ", ".join(names), tuple(modules)))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's tensor."""
    return tuple(int(size) for size in node.meta["val"].shape)


def operator_name(node: fx.Node) -> str:
    """An operator as a report shows it: "conv2d" of `aten.conv2d.default`; of an item, what gives the tuple."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return operator_name(node.args[0])
    return str(node.target).removeprefix("aten.").partition(".")[0]


def with_channels(planes: Planes, channels: int) -> Planes:
    """The same planes for another number of channels."""
    return replace(planes, channels=channels)


def _four(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    images, channels, rows, cols = shape
    return images, channels, rows, cols
