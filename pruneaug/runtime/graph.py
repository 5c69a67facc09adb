"""A PyTorch network as a graph of operators, with batch-norms folded into the convolutions before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from pruneaug.errors import CompileError
from pruneaug.kernels.layers import NO_CLAMP, Clamp

_aten = torch.ops.aten
_PRODUCTS = {_aten.linear.default, _aten.conv2d.default, _aten.conv2d.padding}


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a linear layer or convolution in the graph: its node, the layer's name, the weight and bias it reads."""

    node: fx.Node
    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None


def export_program(model: nn.Module, example_inputs: Sequence[Any]) -> ExportedProgram:
    """The operators that `model` runs in eval mode for inputs of these shapes; `model` stays as it is.

    Raises CompileError if torch.export cannot capture the network.
    """
    was_training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            return torch.export.export(model.eval(), tuple(example_inputs), strict=False)
    except Exception as error:
        raise CompileError(
            f"the network must be exportable by torch.export, but {type(model).__name__} is not: {error}; "
            "remove data-dependent Python control flow from forward, or compile the part that has none"
        ) from error
    finally:
        for module, training in was_training.items():
            module.training = training


def program_graph(program: ExportedProgram) -> fx.GraphModule:
    """The program as a graph of its own that can be changed; weights are shared with the program."""
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    return graph


def fold_batchnorms(graph: fx.GraphModule) -> int:
    """Fold every batch-norm that alone reads a convolution or linear layer into its weight and bias; how many."""
    folded = 0
    for call in list(layer_calls(graph)):
        users = list(call.node.users)
        if len(users) != 1 or users[0].target is not _aten.batch_norm.default:
            continue
        norm = users[0]
        arguments: Any = norm.args
        scale, shift, mean, var = (None if arg is None else _tensor(graph, arg) for arg in arguments[1:5])
        if arguments[5] or mean is None or var is None or _uses(graph, call.node.args[1]) > 1:
            continue  # statistics of the batch, or a weight that another call reads unfolded
        factor = torch.rsqrt(var + arguments[7]) * (1.0 if scale is None else scale)
        weight = call.weight * factor.view(-1, *[1] * (call.weight.dim() - 1))
        bias = (0.0 if call.bias is None else call.bias) * factor - mean * factor
        _replace_weights(graph, call.node, weight, bias if shift is None else bias + shift)
        norm.replace_all_uses_with(call.node)
        graph.graph.erase_node(norm)
        folded += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return folded


def layer_calls(graph: fx.GraphModule) -> Iterator[LayerCall]:
    """Every call of a linear layer or convolution whose weight is a parameter, in the order of execution."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in _PRODUCTS:
            continue
        weight = node.args[1]
        if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
            continue
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
            continue
        name = node.meta.get("layer") or str(weight.target).removesuffix(".weight")
        yield LayerCall(node, name, _tensor(graph, weight), None if bias is None else _tensor(graph, bias))


def take_clamp(graph: fx.GraphModule, node: fx.Node) -> Clamp:
    """Remove the ReLU or clamp that alone reads `node` and return its bounds; no clamp if there is none."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_function":
        return NO_CLAMP
    user = users[0]
    if user.target in (_aten.relu.default, _aten.relu_.default):
        bounds: Clamp = (0.0, NO_CLAMP[1])
    elif user.target in (_aten.hardtanh.default, _aten.hardtanh_.default, _aten.clamp.default):
        defaults = NO_CLAMP if user.target is _aten.clamp.default else (-1.0, 1.0)
        given = [user.args[i] if len(user.args) > i else None for i in (1, 2)]
        bounds = tuple(d if g is None else float(g) for d, g in zip(defaults, given))  # type: ignore[assignment, arg-type]
    else:
        return NO_CLAMP
    user.replace_all_uses_with(node)
    graph.graph.erase_node(user)
    return bounds


def _tensor(graph: fx.GraphModule, node: Any) -> torch.Tensor:
    value: Any = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value.detach()


def _uses(graph: fx.GraphModule, weight: Any) -> int:
    return sum(len(node.users) for node in graph.graph.nodes if node.op == "get_attr" and node.target == weight.target)


def _replace_weights(graph: fx.GraphModule, node: fx.Node, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer = node.meta.get("layer") or str(node.args[1].target).removesuffix(".weight")  # type: ignore[union-attr]
    with graph.graph.inserting_before(node):
        nodes = []
        for kind, value in (("weight", weight), ("bias", bias)):
            buffer = f"_folded_{layer.replace('.', '_')}_{kind}"
            graph.register_buffer(buffer, value)
            nodes.append(graph.graph.get_attr(buffer))
    # The rest of the arguments (stride, padding, ...) stay.
    node.args = (node.args[0], *nodes, *node.args[3:])
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}
    node.meta["layer"] = layer
