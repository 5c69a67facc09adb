"""The operators that have kernels: ATen target -> what lowers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pruneaug.runtime.attention import attention
from pruneaug.runtime.lowering import Handler
from pruneaug.runtime.operators import elementwise, pooling, products, shapes, tokens

_aten = torch.ops.aten

HANDLERS: Mapping[Any, Handler] = {
    _aten.linear.default: products.linear,
    _aten.conv2d.default: products.conv2d,
    _aten.conv2d.padding: products.conv2d,
    attention: tokens.attention,
    _aten.layer_norm.default: tokens.layer_norm,
    _aten.embedding.default: tokens.embedding,
    _aten.matmul.default: tokens.matmul,
    _aten.bmm.default: tokens.matmul,
    _aten.softmax.int: tokens.softmax,
    _aten.select.int: tokens.select,
    _aten.max_pool2d.default: pooling.max_pool2d,
    _aten.avg_pool2d.default: pooling.avg_pool2d,
    _aten.adaptive_avg_pool2d.default: pooling.adaptive_avg_pool2d,
    _aten.mean.dim: pooling.mean,
    _aten.batch_norm.default: elementwise.batch_norm,
    **dict.fromkeys(elementwise.BINARY, elementwise.binary),
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(shapes.VIEWS, shapes.view),
    **dict.fromkeys(shapes.PERMUTATIONS, shapes.permute),
    _aten.cat.default: shapes.concatenate,
}
