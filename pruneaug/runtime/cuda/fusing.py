"""Our operator in the place of pruned layers in a graph, with the sums, activations and clamps that follow them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from pruneaug.errors import CompileError
from pruneaug.kernels.cuda.products import CudaCall
from pruneaug.kernels.cuda.shapes import Shape
from pruneaug.kernels.weights import Epilogue
from pruneaug.network.ops import LinearOp, Op
from pruneaug.runtime.cuda.operator import block_sparse, sizes_of
from pruneaug.runtime.fusion import functions_after, sum_after
from pruneaug.runtime.graph import LayerCall, conv_op

_aten = torch.ops.aten
_LONGER = 9  # TorchInductor makes each constant of fewer values anew, by a kernel at each call
_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # images with their channels there, from the other


@dataclass(frozen=True, slots=True, eq=False)
class FusedLayer:
    """One call of a layer, and what its kernel computes beside it; `nodes` are these operators in their order."""

    call: LayerCall
    op: Op
    epilogue: Epilogue
    nodes: tuple[fx.Node, ...]
    residual: fx.Node | None

    @property
    def origin(self) -> str:
        """The operators, as a report shows them: "linear, add, gelu"."""
        return ", ".join(str(node.target).split(".")[1] for node in self.nodes)


def fused_layer(call: LayerCall) -> FusedLayer:
    """A call with the sum, the activation and the clamp, in this order, that alone read it one after the other."""
    nodes, residual = [call.node], None
    if (found := sum_after(call.node)) is not None:
        total, other = found
        if other.meta["val"].dtype == call.node.meta["val"].dtype:
            nodes, residual = [call.node, total], other
    following, activation, clamp = functions_after(nodes[-1])
    epilogue = Epilogue(activation, clamp, residual is not None)
    return FusedLayer(call, op_of(call), epilogue, (*nodes, *following), residual)


def op_of(call: LayerCall) -> Op:
    """What a call computes, with its sizes."""
    if call.weight.dim() == 4:
        return conv_op(call)
    return LinearOp(math.prod(call.shape[:-1]), call.shape[-1], int(call.weight.shape[0]))


def replace_layers(
    graph: fx.GraphModule,
    calls: list[LayerCall],
    pack: Callable[[FusedLayer], CudaCall],
    device: torch.device,
) -> tuple[dict[FusedLayer, CudaCall], dict[str, str]]:
    """Replace these calls, in place, by the kernels that `pack` makes of them.

    Returns what was replaced, and of each layer that kernels do not compute the reason; those stay as they are. Calls
    of one layer on inputs of one shape share its packed weights.
    """
    replaced: dict[FusedLayer, CudaCall] = {}
    refused: dict[str, str] = {}
    buffers: dict[tuple[str, Op, Shape], list[str]] = {}
    for call in calls:
        layer = fused_layer(call)
        try:
            product = pack(layer)
        except CompileError as error:
            refused[call.name] = str(error)
            continue
        key = call.name, layer.op, replace(product.shape, activation="none", residual=False)
        if key not in buffers:
            buffers[key] = _store(graph, f"_packed_{len(buffers)}", product, device)
        _replace(graph, layer, product, buffers[key])
        replaced[layer] = product
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return replaced, refused


def _store(graph: fx.GraphModule, prefix: str, product: CudaCall, device: torch.device) -> list[str]:
    """Keep a kernel's arrays as buffers; their names. Unsigned words become signed ones, which PyTorch knows better."""
    names = []
    for name, array in product.constants.items():
        if name == "indptr":
            array = np.pad(array, (0, max(0, _LONGER - len(array))), mode="edge")
        signed = array.view(np.int32) if array.dtype == np.uint32 else array
        graph.register_buffer(f"{prefix}_{name}", torch.from_numpy(signed).to(device, copy=True))
        names.append(f"{prefix}_{name}")
    return names


def _replace(graph: fx.GraphModule, layer: FusedLayer, product: CudaCall, buffers: list[str]) -> None:
    last, is_image = layer.nodes[-1], layer.call.weight.dim() == 4
    x, residual = layer.call.node.args[0], layer.residual
    assert isinstance(x, fx.Node)
    clamp = [float(product.scalars.low), float(product.scalars.high)]
    with graph.graph.inserting_before(last):
        if is_image:
            x = graph.graph.call_function(_aten.permute.default, (x, list(_LAST)))
            residual = residual and graph.graph.call_function(_aten.permute.default, (residual, list(_LAST)))
        constants = [graph.graph.get_attr(name) for name in buffers]
        arguments = x, residual, constants, product.shape.key, sizes_of(product.scalars), clamp
        result = graph.graph.call_function(block_sparse._opoverload, arguments)
        if is_image:
            result = graph.graph.call_function(_aten.permute.default, (result, list(_FIRST)))
    result.meta = {**last.meta, "val": last.meta["val"]}
    last.replace_all_uses_with(result)
    for node in reversed(layer.nodes):
        graph.graph.erase_node(node)
