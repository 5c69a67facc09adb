"""In-place operators of an exported graph, made functional."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from pruneaug.runtime.graph import program_graph


def functional_graph(program: ExportedProgram) -> fx.GraphModule:
    """The program as a graph of its own without in-place operators; weights are shared with the program."""
    graph = program_graph(program)
    if _replace_in_place(graph):
        graph.recompile()
        return graph
    # An operator writes through a view: PyTorch's own pass follows the aliases, but decomposes more than we want.
    return program_graph(program.run_decompositions({}))


def _replace_in_place(graph: fx.GraphModule) -> bool:
    """Put the functional operator in the place of every in-place one; False if a view of what it changes is read."""
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    for node in list(graph.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        target, changed = _functional(node), node.args[0]
        if target is None or not isinstance(changed, fx.Node) or _is_view(changed):
            return False
        if any(_is_view(user) for user in changed.users):
            return False
        node.target = target
        for user in list(changed.users):
            if user is not node and order[user] > order[node]:
                user.replace_input_with(changed, node)
    return True


def _functional(node: fx.Node) -> Any:
    """The operator that returns what this in-place one writes into its first argument; None if there is none."""
    schema = node.target._schema  # type: ignore[union-attr]
    writes = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
    name = schema.name.removeprefix("aten::")
    if not name.endswith("_") or not writes[0] or any(writes[1:]):
        return None
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    return getattr(packet, schema.overload_name or "default", None)


def _is_view(node: fx.Node) -> bool:
    """Whether the result may share memory with an argument that stays as it is."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.op == "call_function"  # Python's own functions: an item of a tuple may be a view
    return any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
