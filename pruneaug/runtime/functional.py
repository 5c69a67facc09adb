"""In-place operators of an exported graph, made functional."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from pruneaug.errors import CompileError
from pruneaug.runtime.graph import program_graph, remove_dead
from pruneaug.runtime.tracing import tracing

_aten = torch.ops.aten
_DROPOUTS = (_aten.dropout.default, _aten.feature_dropout.default, _aten.alpha_dropout.default)


def functional_graph(program: ExportedProgram) -> fx.GraphModule:
    """The program as a graph of its own without in-place operators; weights are shared with the program.

    Inputs that the program writes to stay as they are: only its outputs count. Raises CompileError for a program that
    changes its own parameters or buffers.
    """
    graph = program_graph(program)
    _remove_dropouts(graph)
    if _replace_in_place(graph):
        graph.recompile()
        return graph
    # An operator writes through a view: PyTorch's own pass follows the aliases, but decomposes more than we want.
    with tracing():
        program = program.run_decompositions({})
    for spec in program.graph_signature.output_specs:
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            raise _stateful(str(spec.target))
    graph = program_graph(program)
    for node in list(graph.graph.nodes):
        if node.target is _aten.copy_.default and node.args[0].op == "placeholder":
            node.replace_all_uses_with(node.args[1])  # what the program wrote into an input
    remove_dead(graph)
    return graph


def _stateful(name: str) -> CompileError:
    return CompileError(
        f"a network must compute the same in every call, but this one changes its own {name!r}; return the new value "
        "instead, and give it back as an input"
    )


def _remove_dropouts(graph: fx.GraphModule) -> None:
    """Put the input in the place of every dropout in eval mode: it returns the very same tensor, not a copy."""
    for node in list(graph.graph.nodes):
        if node.target in _DROPOUTS and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _replace_in_place(graph: fx.GraphModule) -> bool:
    """Put the functional operator in the place of every in-place one; False if a view of what it changes is read."""
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        target, changed = _functional(node), node.args[0]
        if target is None or not isinstance(changed, fx.Node) or _may_be_view(changed) or _widens(node):
            return False
        if changed.op == "get_attr":
            raise _stateful(str(changed.target))
        if any(_may_be_view(user) for user in changed.users):
            return False
        node.target = target
        for user in list(changed.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(changed, node)
    return True


def _widens(node: fx.Node) -> bool:
    """Whether the functional operator may return a wider dtype than that of the tensor which is written to."""
    changed, *others = (source.meta["val"].dtype for source in node.all_input_nodes)
    return any(torch.promote_types(changed, other) != changed for other in others)


def _functional(node: fx.Node) -> Any:
    """The operator that returns what this in-place one writes into its first argument; None if there is none."""
    schema = node.target._schema  # type: ignore[union-attr]
    writes = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
    name = schema.name.removeprefix("aten::")
    if not name.endswith("_") or not writes[0] or any(writes[1:]):
        return None
    packet: Any = getattr(_aten, name.removesuffix("_"), None)
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    # Overloads of one name may differ: `pow_.Scalar` takes a number where `pow.Scalar` takes a tensor.
    types = [str(argument.type) for argument in schema.arguments]
    same = [overload for overload in overloads if [str(arg.type) for arg in overload._schema.arguments] == types]
    return same[0] if same else None


def _may_be_view(node: fx.Node) -> bool:
    """Whether the result may share memory with an argument that stays as it is."""
    if node.target is _aten.type_as.default:
        return True  # of an equal type, it returns its argument, and its schema does not say so
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.op == "call_function"  # Python's own functions: an item of a tuple may be a view
    return any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
