"""Simplifying an exported graph: what depends on no input is computed now, what changes nothing is removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pruneaug.runtime.graph import constant, remove_dead

_aten = torch.ops.aten
_MASK = 3  # the position of attention's mask among its arguments
_RANDOM = torch.Tag.nondeterministic_seeded
_IDENTITIES = {
    _aten.contiguous.default, _aten.clone.default, _aten.detach.default, _aten.alias.default,
    _aten.lift_fresh_copy.default,
}  # fmt: skip
# The results of these are the input wherever dtype and shape agree.
_CASTS = {
    _aten.to.dtype, _aten.to.dtype_layout, _aten.to.device, _aten._to_copy.default, _aten.expand.default,
    _aten.reshape.default, _aten.type_as.default,
}  # fmt: skip


def simplify(graph: fx.GraphModule) -> None:
    """Fold constants and remove identities, in place, of a functional graph."""
    _remove_identities(graph)
    fold_constants(graph)


def remove_void_masks(graph: fx.GraphModule) -> None:
    """Attention without a mask where a constant one removes nothing, in place: with one, no flash attention is used."""
    for node in graph.graph.find_nodes(op="call_function", target=_aten.scaled_dot_product_attention.default):
        by_position = len(node.args) > _MASK
        mask = node.args[_MASK] if by_position else node.kwargs.get("attn_mask")
        if isinstance(mask, fx.Node) and mask.op == "get_attr" and _is_void(_attribute(graph, mask)):
            node.update_arg(_MASK, None) if by_position else node.update_kwarg("attn_mask", None)
    remove_dead(graph)


def _is_void(mask: Any) -> bool:
    """True is what takes part, and numbers are added."""
    return isinstance(mask, torch.Tensor) and bool((mask if mask.dtype == torch.bool else mask == 0).all())


def _remove_identities(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default  # what made its input contiguous goes
        if node.target in _IDENTITIES or (node.target in _CASTS and _is_same(node)):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _is_same(node: fx.Node) -> bool:
    source, result = node.args[0].meta.get("val"), node.meta.get("val")  # type: ignore[union-attr]
    return (
        isinstance(source, torch.Tensor)
        and isinstance(result, torch.Tensor)
        and source.shape == result.shape
        and source.dtype == result.dtype
    )


@torch.no_grad()
def fold_constants(graph: fx.GraphModule) -> None:
    """Put constants in the place of what depends on no input, and remove what no output needs, in place."""
    known: dict[fx.Node, Any] = {}
    computed: list[fx.Node] = []
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            known[node] = _attribute(graph, node)
        elif node.op == "call_function" and _is_foldable(node, known):
            try:
                known[node] = node.target(*_values(node.args, known), **_values(node.kwargs, known))
            except Exception:  # it will say so when it runs
                continue
            computed.append(node)
    for node in computed:
        value = known[node]
        if not isinstance(value, torch.Tensor) or all(user in known for user in node.users):
            continue  # nobody needs it beside other constants
        name = f"_constant_{node.name}"
        graph.register_buffer(name, value.contiguous().clone())
        with graph.graph.inserting_before(node):
            replacement = graph.graph.get_attr(name)
        replacement.meta = {"val": node.meta.get("val")}
        node.replace_all_uses_with(replacement)
    remove_dead(graph)


def _is_foldable(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return False
    return _RANDOM not in node.target.tags and all(source in known for source in node.all_input_nodes)


def _attribute(graph: fx.GraphModule, node: fx.Node) -> Any:
    try:
        return constant(graph, node)
    except AssertionError:  # a module or a script object
        return None


def _values(argument: Any, known: dict[fx.Node, Any]) -> Any:
    return fx.map_arg(argument, lambda node: known[node])
