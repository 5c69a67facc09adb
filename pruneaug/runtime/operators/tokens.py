"""What transformers have beside linear layers: attention, norms, embeddings, products of activations, softmax."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from pruneaug.kernels import attention as kernels
from pruneaug.kernels import embedding as embedding_kernels
from pruneaug.kernels import layernorm as layernorm_kernels
from pruneaug.kernels import matmul as matmul_kernels
from pruneaug.kernels import softmax as softmax_kernels
from pruneaug.kernels.planes import token_planes
from pruneaug.runtime.activations import CHANNELS_LAST, Activation
from pruneaug.runtime.lowering import Lowering, shape_of, with_channels

_aten = torch.ops.aten


def attention(lowering: Lowering, node: fx.Node) -> Activation | None:
    """The node of `pruneaug.runtime.attention`. A mask that hides nothing is left out."""
    q_node, k_node, v_node, mask_node = node.args
    held = [lowering.sequences(source) for source in (q_node, k_node, v_node)]  # type: ignore[arg-type]
    q, k, v = held
    assert q is not None
    assert k is not None
    assert v is not None
    mask: Any = None
    inputs = [q.buffer, k.buffer, v.buffer]
    if isinstance(mask_node, fx.Node):
        value = lowering.constant(mask_node)
        if value is None:
            mask = (1,) * (4 - len(shape_of(mask_node))) + shape_of(mask_node)
            inputs.append(lowering.plain(mask_node))
        elif bool(value.any()):
            mask = value.float().numpy().reshape((1,) * (4 - value.dim()) + tuple(value.shape))
    y = with_channels(q.planes, v.planes.channels)
    heads: Any = node.kwargs["heads"]
    scale: Any = node.kwargs["scale"]
    causal = bool(node.kwargs["causal"])
    call = kernels.attention(q.planes, k.planes, v.planes, y, heads, scale, lowering.target, mask=mask, causal=causal)
    buffer = lowering.kernel(call, inputs, "attention")
    return Activation(shape_of(node), torch.float32, None, replace(q, buffer=buffer, planes=y))


def layer_norm(lowering: Lowering, node: fx.Node) -> Activation | None:
    """A norm over the last dimension of a tensor in planes, its parameters constants."""
    source, normalized, *rest = node.args
    weight, bias = ((lowering.constant(p) if p is not None else None) for p in (*rest[:2], None, None)[:2])
    given = [parameter for parameter in rest[:2] if parameter is not None]
    if len(normalized) != 1 or len([p for p in (weight, bias) if p is not None]) != len(given):  # type: ignore[arg-type]
        return None
    eps: Any = rest[2] if len(rest) > 2 else node.kwargs.get("eps", 1e-5)
    assert isinstance(source, fx.Node)
    if math.prod(shape_of(source)[:-1]) == 1:
        return None  # one token has no vectors of positions
    x = lowering.tokens(source)
    if x is None:
        return None
    call = layernorm_kernels.layer_norm(
        x.planes, x.planes, _array(weight), _array(bias), float(eps), lowering.target.lanes
    )
    return lowering.result(node, lowering.kernel(call, [x.buffer], "layer_norm"), x.planes, CHANNELS_LAST)


def embedding(lowering: Lowering, node: fx.Node) -> Activation | None:
    """Rows of a constant table, for ids [..., tokens]."""
    table = lowering.constant(node.args[0])
    ids: Any = node.args[1]
    shape = shape_of(node)
    if table is None or table.dtype != torch.float32 or len(shape) != 3 or 0 in shape:
        return None
    if ids.meta["val"].dtype != torch.int64:
        return None
    images, tokens, channels = shape
    planes = token_planes(images, channels, tokens, lowering.target.lanes)
    values = table.numpy()
    call = embedding_kernels.embedding(values, planes, lowering.target.lanes)
    return lowering.result(node, lowering.kernel(call, [lowering.plain(ids)], "embedding"), planes, CHANNELS_LAST)


def matmul(lowering: Lowering, node: fx.Node) -> Activation | None:
    """A product of two activations in plain memory, [..., M, K] by [..., K, N]."""
    a, b = node.args[:2]
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
        return None
    left, right, shape = shape_of(a), shape_of(b), shape_of(node)
    if len(left) < 2 or len(right) < 2 or node.meta["val"].dtype != torch.float32 or 0 in (*shape, left[-1]):
        return None
    batch = math.prod(shape[:-2])
    for given in (left, right):
        # Either a matrix for each product, or one for all.
        if given[:-2] != shape[:-2] and math.prod(given[:-2]) != 1:
            return None
    m, k, n = left[-2], left[-1], right[-1]
    call = matmul_kernels.matmul(
        batch, m, n, k, lowering.target,
        shared_a=math.prod(left[:-2]) != batch, shared_b=math.prod(right[:-2]) != batch,
    )  # fmt: skip
    buffer = lowering.kernel(call, [lowering.plain(a), lowering.plain(b)], "matmul")
    return Activation(shape, torch.float32, buffer)


def softmax(lowering: Lowering, node: fx.Node) -> Activation | None:
    """Over the last dimension of a tensor in plain memory."""
    source, dim = node.args[:2]
    shape = shape_of(node)
    if not isinstance(source, fx.Node) or (len(node.args) > 2 and node.args[2] is not None) or node.kwargs:
        return None
    if int(dim) % max(len(shape), 1) != len(shape) - 1 or source.meta["val"].dtype != torch.float32 or 0 in shape:  # type: ignore[arg-type]
        return None
    call = softmax_kernels.softmax(math.prod(shape[:-1]), shape[-1], lowering.target.lanes)
    return Activation(shape, torch.float32, lowering.kernel(call, [lowering.plain(source)], "softmax"))


def select(lowering: Lowering, node: fx.Node) -> Activation | None:
    """The first token of each sequence: it lies where the sequence does."""
    source, dim, index = node.args
    held = lowering.held(source)
    shape = shape_of(source) if isinstance(source, fx.Node) else ()
    if held is None or held.channel_dim != CHANNELS_LAST or len(shape) != 3 or int(dim) % 3 != 1:  # type: ignore[arg-type]
        return None
    if held.planes.images != shape[0] or int(index) % shape[1] != 0:  # type: ignore[arg-type]
        return None
    planes = replace(held.planes, rows=1, cols=1, pitch=1, zero_border=False)
    if held.planes.lead:
        return None
    return Activation(shape_of(node), torch.float32, None, replace(held, planes=planes))


def _array(value: torch.Tensor | None) -> npt.NDArray[np.float32] | None:
    return None if value is None else value.detach().float().numpy()
