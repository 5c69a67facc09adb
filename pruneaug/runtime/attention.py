"""Recognising attention: the operators from the projections to the joined heads become one node."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pruneaug.runtime.graph import only_user, remove_dead

_aten = torch.ops.aten
_MATMUL = {_aten.matmul.default, _aten.bmm.default}
_VIEW = {_aten.view.default, _aten.reshape.default, _aten.unflatten.int}
_SOFTMAX = {_aten.softmax.int, _aten._softmax.default}


def attention(q: Any, k: Any, v: Any, mask: Any, *, heads: int, scale: float, causal: bool) -> Any:
    """The target of the nodes that `fuse_attention` makes.

    q [B, Tq, heads * d], k and v [B, Tk, heads * d], additive mask broadcastable to [B, heads, Tq, Tk] or None ->
    [B, Tq, heads * d].
    """
    raise NotImplementedError("a compiler's node is lowered, not run")


@dataclass(frozen=True, slots=True)
class _Scores:
    """softmax(scale * q @ k^T + mask), its operands split into heads [B, heads, T, d].

    A mask of bools says which keys count.
    """

    q: fx.Node
    k: fx.Node
    mask: fx.Node | None
    scale: float
    causal: bool = False


def fuse_attention(graph: fx.GraphModule) -> int:
    """Replace every attention on heads [B, heads, T, d] by a node of `attention`; how many.

    Where the heads are not split from, or joined to, [B, T, heads * d], nodes that do so are put between.
    """
    count = 0
    masks: dict[tuple[fx.Node, int], fx.Node] = {}  # as the kernel takes them; layers share theirs
    for node in list(graph.graph.nodes):
        found = _match(node) if node.op == "call_function" else None
        if found is None or not _is_plain(node, *found):
            continue
        scores, v = found
        with graph.graph.inserting_before(node):
            sources = [_split_heads(x) or _join_heads(graph.graph, x) for x in (scores.q, scores.k, v)]
        mask = scores.mask
        if mask is not None:
            key = mask, scores.k.meta["val"].shape[2]
            masks[key] = mask = masks.get(key) or _additive(graph.graph, *key)
        with graph.graph.inserting_before(node):
            fused = graph.graph.call_function(
                attention,
                (*sources, mask),
                {"heads": node.meta["val"].shape[1], "scale": scores.scale, "causal": scores.causal},
            )
        joined = _joined(node)
        if joined is not None:
            fused.meta = dict(joined.meta)
            joined.replace_all_uses_with(fused)
        else:
            fused.meta = dict(node.meta) | {"val": _joined_value(node.meta["val"])}
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(_split(graph.graph, fused, node.meta["val"]))
        count += 1
    remove_dead(graph)
    return count


def _is_plain(node: fx.Node, scores: _Scores, v: fx.Node) -> bool:
    """Whether all values are float32, and each head of q has its own in k and v: nothing is broadcast but the mask."""
    operands = [x.meta["val"] for x in (scores.q, scores.k, v)]
    if any(x.dtype != torch.float32 or 0 in x.shape for x in operands):
        return False
    q, k, v_value = (tuple(x.shape) for x in operands)
    if node.meta["val"].shape != (*q[:3], v_value[3]) or k[:2] != q[:2] or v_value[:3] != k[:3]:
        return False
    return scores.mask is None or scores.mask.meta["val"].dtype in (torch.float32, torch.bool)


def _additive(graph: fx.Graph, mask: fx.Node, keys: int) -> fx.Node:
    """The mask as float32 summands with a value for each key."""
    value = mask.meta["val"]
    with graph.inserting_after(mask):
        if value.dtype == torch.bool:
            mask = graph.call_function(_aten.where.Scalar, (mask, 0.0, -math.inf))
            mask.meta["val"] = value = value.to(torch.float32)
    if value.shape[-1:] != (keys,):
        shape = (*value.shape[:-1], keys)
        with graph.inserting_after(mask):
            mask = graph.call_function(_aten.expand.default, (mask, list(shape)))
        mask.meta["val"] = value.expand(shape)
    return mask


def _join_heads(graph: fx.Graph, x: fx.Node) -> fx.Node:
    """A new node [B, T, heads * d] of the heads `x` [B, heads, T, d]."""
    value = _joined_value(x.meta["val"])
    transposed = graph.call_function(_aten.transpose.int, (x, 1, 2))
    transposed.meta["val"] = x.meta["val"].transpose(1, 2)
    joined = graph.call_function(_aten.reshape.default, (transposed, list(value.shape)))
    joined.meta["val"] = value
    return joined


def _split(graph: fx.Graph, joined: fx.Node, heads: torch.Tensor) -> fx.Node:
    """A new node of the shape of `heads` [B, heads, T, d] from `joined` [B, T, heads * d]."""
    batch, count, tokens, size = heads.shape
    view = graph.call_function(_aten.reshape.default, (joined, [batch, tokens, count, size]))
    view.meta["val"] = joined.meta["val"].reshape(batch, tokens, count, size)
    split = graph.call_function(_aten.transpose.int, (view, 1, 2))
    split.meta["val"] = view.meta["val"].transpose(1, 2)
    return split


def _joined_value(heads: torch.Tensor) -> torch.Tensor:
    return heads.transpose(1, 2).reshape(heads.shape[0], heads.shape[2], -1)


def _match(node: fx.Node) -> tuple[_Scores, fx.Node] | None:
    """The scores and v of a node that computes scores @ v [B, heads, Tq, d]."""
    if node.target is _aten.scaled_dot_product_attention.default:
        return _match_call(node)
    if node.target not in _MATMUL or node.meta["val"].dim() != 4:
        return None
    weights: Any
    v: Any
    weights, v = node.args
    if not (isinstance(weights, fx.Node) and isinstance(v, fx.Node)) or weights.target not in _SOFTMAX:
        return None
    if weights.args[1] not in (-1, 3) or len(weights.users) > 1:
        return None
    scores: Any = weights.args[0]
    mask: Any = None
    factor = 1.0
    if _is(scores, _aten.add.Tensor) and isinstance(scores.args[1], fx.Node) and not scores.kwargs:
        # The mask is the summand that broadcasts, or the one that no product made.
        first, second = scores.args
        scores, mask = (first, second) if _is_scaled_product(first) else (second, first)
        if isinstance(mask, fx.Node) and not mask.meta["val"].is_floating_point():
            return None  # added, it is no mask of bools
    if _is(scores, _aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.div.Scalar):
        if not isinstance(scores.args[1], int | float):
            return None
        is_product = scores.target in (_aten.mul.Tensor, _aten.mul.Scalar)
        factor = float(scores.args[1]) if is_product else 1.0 / float(scores.args[1])
        scores = scores.args[0]
    if not isinstance(scores, fx.Node) or scores.target not in _MATMUL or len(scores.users) > 1:
        return None
    q, k_transposed = scores.args
    k = _transposed(k_transposed, 2, 3)
    if not isinstance(q, fx.Node) or k is None:
        return None
    return _Scores(q, k, mask, factor), v


def _match_call(node: fx.Node) -> tuple[_Scores, fx.Node] | None:
    arguments: dict[str, Any] = dict(zip(("q", "k", "v", "mask", "dropout", "causal"), node.args)) | dict(node.kwargs)
    q, k, v = (arguments[name] for name in "qkv")
    mask = arguments.get("mask", arguments.get("attn_mask"))
    if node.meta["val"].dim() != 4 or arguments.get("enable_gqa"):
        return None
    if arguments.get("dropout", arguments.get("dropout_p", 0.0)):
        return None
    scale = arguments.get("scale")
    factor = 1.0 / math.sqrt(q.meta["val"].shape[-1]) if scale is None else float(scale)
    causal = bool(arguments.get("causal", arguments.get("is_causal", False)))
    return _Scores(q, k, mask, factor, causal), v


def _joined(node: fx.Node) -> fx.Node | None:
    """The node [B, T, heads * d] that joins the heads of `node` [B, heads, T, d], its only reader."""
    transposed = only_user(node)
    if transposed is None or _transposed(transposed, 1, 2) is not node:
        return None
    joined = only_user(transposed)
    batch, heads, tokens, size = node.meta["val"].shape
    if joined is None or joined.target not in _VIEW:
        return None
    shape = tuple(joined.meta["val"].shape)
    return joined if shape in ((batch, tokens, heads * size), (batch * tokens, heads * size)) else None


def _split_heads(node: fx.Node) -> fx.Node | None:
    """The node [B, T, heads * d] whose heads `node` [B, heads, T, d] are."""
    view = _transposed(node, 1, 2)
    if view is None or view.target not in _VIEW or not isinstance(view.args[0], fx.Node):
        return None
    batch, heads, tokens, size = node.meta["val"].shape
    source = view.args[0]
    return source if tuple(source.meta["val"].shape) == (batch, tokens, heads * size) else None


def _transposed(node: Any, first: int, second: int) -> Any:
    """What `node`, of 4 dimensions, is the transposition of."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or node.meta["val"].dim() != 4:
        return None
    arguments: Any = node.args
    if node.target is _aten.transpose.int:
        dims = {int(dim) % 4 for dim in arguments[1:3]}
        return arguments[0] if dims == {first, second} else None
    if node.target is _aten.permute.default:
        order = list(range(4))
        order[first], order[second] = second, first
        return arguments[0] if [int(d) % 4 for d in arguments[1]] == order else None
    return None


def _is_scaled_product(node: Any) -> bool:
    while _is(node, _aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.div.Scalar):
        node = node.args[0]
    return isinstance(node, fx.Node) and node.target in _MATMUL


def _is(node: Any, *targets: Callable[..., Any]) -> bool:
    return isinstance(node, fx.Node) and node.target in targets and len(node.users) == 1
