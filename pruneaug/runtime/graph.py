"""A PyTorch network as a graph of operators, and the layers in it."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from pruneaug.errors import CompileError, InputError
from pruneaug.network.ops import Conv2dOp
from pruneaug.runtime.tracing import tracing

_aten = torch.ops.aten
# What PyTorch raises where Python asks for a value that only the inputs decide.
_DATA_DEPENDENT = (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException)
_PRODUCTS = {_aten.linear.default, _aten.conv2d.default, _aten.conv2d.padding}


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a linear layer or convolution in the graph: its node, the layer's name, the weight and bias it reads.

    `shape` is that of its input.
    """

    node: fx.Node
    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    shape: tuple[int, ...]


def check_module(model: Any) -> None:
    """Raises InputError for what is no module."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a network must be a torch.nn.Module, but got {type(model).__name__}; give the module itself, or write a "
            "module whose `forward` calls it"
        )


def export_program(model: nn.Module, example_inputs: Sequence[Any]) -> ExportedProgram:
    """The operators that `model` runs in eval mode for inputs of these shapes; `model` stays as it is.

    Raises InputError for what is no module, CompileError if torch.export cannot capture the network.
    """
    check_module(model)
    with tracing():
        was_training = {module: module.training for module in model.modules()}
        try:
            with torch.no_grad():
                return torch.export.export(model.eval(), tuple(example_inputs), strict=False)
        except Exception as error:
            reason = str(error).partition("\n")[0]  # torch adds a page of advice
            raise CompileError(
                f"the network must be exportable by torch.export, but {type(model).__name__} is not: it raised "
                f"{type(error).__name__}: {reason}; {_remedy(error)}"
            ) from error
        finally:
            for module, training in was_training.items():
                module.training = training


def _remedy(error: Exception) -> str:
    if isinstance(error, _DATA_DEPENDENT):
        return "remove data-dependent Python control flow from forward, or compile the part that has none"
    return "compute it by PyTorch's operators on tensors in forward, or compile the part of the network without it"


def first_names(program: ExportedProgram) -> dict[str, str]:
    """Every parameter and buffer -> the first of the names that its memory has: a module may have several paths."""
    first: dict[Any, str] = {}
    return {
        name: first.setdefault((value.data_ptr() or id(value), value.shape), name)
        for name, value in program.state_dict.items()
        if isinstance(value, torch.Tensor)
    }


def called_layers(program: ExportedProgram) -> set[str]:
    """The names of the linear layers and convolutions that the program calls, those with an unused result included."""
    first, parameters = first_names(program), program.graph_signature.inputs_to_parameters
    weights = [node.args[1] for node in program.graph.nodes if node.target in _PRODUCTS]
    names = (parameters[weight.name] for weight in weights if weight.name in parameters)
    return {_owner(first[name]) for name in names}


def program_graph(program: ExportedProgram) -> fx.GraphModule:
    """The program as a graph of its own that can be changed; weights are shared with the program.

    Raises CompileError for a module whose name is a word of Python's own.
    """
    try:
        graph = program.module(check_guards=False)
    except SyntaxError as error:  # the graph is Python code in which modules are attributes
        names = sorted({part for name in program.state_dict for part in name.split(".") if keyword.iskeyword(part)})
        raise CompileError(
            f"the names of modules must be no keywords of Python to be compiled, but got {', '.join(names) or error}; "
            "rename them"
        ) from error
    assert isinstance(graph, fx.GraphModule)
    first = first_names(program)
    for call in layer_calls(graph):
        weight: Any = call.node.args[1]
        call.node.meta["layer"] = _owner(first.get(weight.target, weight.target))
    return graph


def remove_dead(graph: fx.GraphModule) -> None:
    """Remove what no output needs, in place, of a functional graph: random operators and assertions count as well."""
    graph.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    graph.recompile()


def mask_weights(graph: fx.GraphModule, masks: Mapping[str, torch.Tensor]) -> None:
    """Set the weights that `masks` (layer name -> bool) remove to zero, in place, in a copy that is the graph's own.

    A layer's kernel knows its mask. But other operators may read its weight, and a layer of constants has no kernel.
    A mask of another shape than its weight is left out.
    """
    weights: dict[Any, LayerCall] = {call.node.args[1]: call for call in layer_calls(graph)}
    for node, call in weights.items():
        mask = masks.get(call.name)
        if mask is None or mask.shape != call.weight.shape:
            continue
        name = f"_masked_{node.name}"
        graph.register_buffer(name, call.weight.masked_fill(~mask.bool(), 0.0))
        with graph.graph.inserting_after(node):
            masked = graph.graph.get_attr(name)
        masked.meta = dict(node.meta)
        node.replace_all_uses_with(masked)
        graph.graph.erase_node(node)
    graph.recompile()


def layer_calls(graph: fx.GraphModule) -> Iterator[LayerCall]:
    """Every call of a linear layer or convolution whose weight is a parameter, in the order of execution."""
    for node in list(graph.graph.nodes):
        call = layer_call(graph, node)
        if call is not None:
            yield call


def layer_call(graph: fx.GraphModule, node: fx.Node) -> LayerCall | None:
    """The node as a call of a linear layer or convolution whose weight is a parameter; None if it is none."""
    if node.op != "call_function" or node.target not in _PRODUCTS:
        return None
    weight = node.args[1]
    if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
        return None
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
        return None
    # A weight that was replaced leaves the layer's name behind.
    name = node.meta.get("layer", _owner(str(weight.target)))
    return LayerCall(
        node,
        name,
        constant(graph, weight),
        None if bias is None else constant(graph, bias),
        tuple(node.args[0].meta["val"].shape),  # type: ignore[union-attr]
    )


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


def only_user(node: fx.Node) -> fx.Node | None:
    """The one operator that reads a node; None if there are several, or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def constant(graph: fx.GraphModule, node: Any) -> torch.Tensor:
    """The parameter or buffer that a `get_attr` node reads."""
    value: Any = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value.detach()


def module_path(node: fx.Node) -> str:
    """The path of the module whose `forward` calls this operator; empty of the network itself, or if unknown."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0])


def dtype_name(dtype: torch.dtype) -> str:
    """As TVM and NumPy call it."""
    return str(dtype).removeprefix("torch.")


def _owner(parameter: str) -> str:
    return "" if parameter == "weight" else parameter.removesuffix(".weight")


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = [int(item) for item in value]
    return (values[0], values[-1])
