"""Operators that have no kernel of ours: runs of them are imported into TVM, which generates its own loops for them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tvm
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from tvm import relax

from pruneaug.errors import CompileError
from pruneaug.runtime.decompositions import decompositions
from pruneaug.runtime.graph import constant, module_path, remove_dead
from pruneaug.runtime.importer import Importer
from pruneaug.runtime.schedule import fuse
from pruneaug.runtime.tracing import tracing

_MUTATIONS = (OutputKind.USER_INPUT_MUTATION, OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Operators of a graph, as a function of their own.

    `inputs` are the nodes outside that it reads, constants aside; `outputs` those of its nodes that are read outside.
    `module` computes the tuple of the outputs' tensors from the inputs' tensors, all contiguous.
    """

    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    module: fx.GraphModule


def extract_region(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> Region:
    """The region of `nodes`: call_function nodes in the order of execution, with tensors or constants as inputs.

    Raises CompileError for a shape that depends on values, and for a result that is read outside and no tensor.
    """
    inside = set(nodes)
    root = nn.Module()
    body = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inputs: list[fx.Node] = []
    constants: dict[fx.Node, fx.Node] = {}
    outside = [source for node in nodes for source in node.all_input_nodes if source not in inside]
    for source in dict.fromkeys(outside):
        if source.op == "get_attr":
            constants[source] = source
            continue
        check_value(source)
        copies[source] = body.placeholder(source.name)
        copies[source].meta["val"] = source.meta["val"]
        inputs.append(source)
    for source in constants:
        name = f"constant_{len(copies)}"
        root.register_buffer(name, _tensor(graph, source))
        copies[source] = body.get_attr(name)
        copies[source].meta["val"] = source.meta.get("val")
    for node in nodes:
        copies[node] = body.node_copy(node, copies.__getitem__)
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    for node in outputs:
        check_value(node)
    body.output(tuple(copies[node] for node in outputs))
    return Region(tuple(inputs), tuple(outputs), fx.GraphModule(root, body))


def add_region(builder: relax.BlockBuilder, region: Region, name: str) -> tvm.ir.GlobalVar:
    """Add the region to the builder's module, as a private function with loops of its own; what to call.

    A call takes the inputs' tensors and returns a tuple of the outputs'. The names of the loops begin with `name`; a
    region that is equal to an earlier one shares its loops. Raises CompileError, naming the operator, where one cannot
    be imported.
    """
    try:
        module = _loops(region)
    except Exception as error:
        raise CompileError(
            f"every operator must be one that can be compiled, but {_culprit(region) or 'one'} is not: {error}; write "
            "it with other operators in the model"
        ) from error
    loops = {
        variable: builder.add_func(function.without_attr("global_symbol"), f"{name}_{variable.name_hint}")
        for variable, function in module.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc)
    }
    main = _Renaming(loops).visit_expr(module["main"])
    return builder.add_func(main.without_attr("global_symbol"), name)


@relax.expr_functor.mutator
class _Renaming(relax.PyExprMutator):  # type: ignore[misc]
    """Puts other global variables in the place of a function's."""

    def __init__(self, variables: dict[tvm.ir.GlobalVar, tvm.ir.GlobalVar]) -> None:
        super().__init__()
        self._variables = variables

    def visit_global_var_(self, variable: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        return self._variables.get(variable, variable)


def _culprit(region: Region) -> str | None:
    """The first operator that cannot be compiled by itself, with its layer; None if all can."""
    for node in region.module.graph.nodes:
        if not isinstance(node.target, torch._ops.OperatorBase):
            continue
        items = [user for user in node.users if user.target is operator.getitem]
        try:
            _loops(extract_region(region.module, [node, *items]))
        except Exception:
            layer = module_path(node)
            return f"{node.target} of layer {layer!r}" if layer else str(node.target)
    return None


def _loops(region: Region) -> tvm.IRModule:
    return fuse(_import(region), tvm.target.Target({"kind": "llvm"}))  # only the kind of the target matters here


def _import(region: Region) -> tvm.IRModule:
    inputs = tuple(torch.zeros(tuple(node.meta["val"].shape), dtype=node.meta["val"].dtype) for node in region.inputs)
    try:
        with tracing(), torch.no_grad():
            program = torch.export.export(region.module, inputs, strict=False).run_decompositions(decompositions())
    except Exception as error:
        reason = str(error).partition("\n")[0]  # torch adds a page of advice
        raise CompileError(f"torch.export does not accept it by itself: {reason}") from error
    _check_functional(program)
    remove_dead(program.graph_module)  # assertions: they would call Python while the network runs
    return Importer().from_exported_program(program, False, False, False, None)


def _check_functional(program: ExportedProgram) -> None:
    changed = [spec.target for spec in program.graph_signature.output_specs if spec.kind in _MUTATIONS]
    if changed:
        raise CompileError(f"it writes into {changed}, which it was given; make the graph functional first")


def check_value(node: fx.Node) -> None:
    """Raises CompileError for a node that gives no tensor, or one whose shape depends on values."""
    val: Any = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        raise CompileError(
            f"what operators pass to each other must be tensors, but {node.format_node()} gives a "
            f"{type(val).__name__}; "
            "keep Python values out of the model's forward"
        )
    if not all(isinstance(size, int) for size in val.shape):
        raise CompileError(
            f"all shapes must be known when a network is compiled, but {node.format_node()} gives {list(val.shape)}, "
            "which depends on values; mask what is not wanted instead of removing it"
        )


def _tensor(graph: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    try:
        return constant(graph, node).contiguous()
    except AssertionError as error:
        raise CompileError(
            f"operators must have tensors as inputs, but {next(iter(node.users)).format_node()} has the module "
            f"{node.target!r}; remove control flow that depends on values"
        ) from error
