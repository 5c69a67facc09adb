"""Operators that rely on the strides of what they read: our convolutions return rows with gaps between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_aten = torch.ops.aten


def accept_any_strides(graph: fx.GraphModule) -> bool:
    """Let every view copy where it must; False, and the graph as it was, if an operator needs contiguous results."""
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    if any(node.target is _aten.as_strided.default or _writes_through_view(node) for node in calls):
        return False
    for node in calls:
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default
    return True


def _writes_through_view(node: fx.Node) -> bool:
    """Whether the node changes a tensor through a view of it: a copy in the view's place would keep the change."""
    schema = _schema(node)
    if schema is None or not schema.is_mutable:
        return False
    written: Any = node.args[0]
    while isinstance(written, fx.Node) and written.op == "call_function" and _is_alias(written):
        if written.target is _aten.view.default:
            return True
        written = written.args[0]
    return False


def _is_alias(node: fx.Node) -> bool:
    schema = _schema(node)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def _schema(node: fx.Node) -> Any:
    return getattr(node.target, "_schema", None)  # Python's own functions have none
