"""Operators that read or write where numbers say, for TVM's importer.

TVM's own read and write any memory that an index names. Here an index outside a dimension counts as its first or last
one, after negative ones have counted from the end where they do in PyTorch; PyTorch raises an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from tvm import relax

if TYPE_CHECKING:
    from pruneaug.runtime.importer import Importer


def argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    """An argument of a node, given by its place or by its name."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _index(importer: Importer, node: fx.Node) -> Any:
    """`x[:, i, j]`: values are taken along the indexed dimensions, which are one dimension for that."""
    emit = importer.block_builder.emit
    x, dims, index = _flat_index(importer, node)
    if dims != list(range(dims[0], dims[-1] + 1)):  # PyTorch puts the index's dimensions first then
        x, dims = _moved(importer, x, dims), list(range(len(dims)))
    shape = [int(size) for size in x.ty.shape]
    merged = [*shape[: dims[0]], math.prod(shape[dims[0] : dims[-1] + 1]), *shape[dims[-1] + 1 :]]
    return emit(relax.op.take(emit(relax.op.reshape(x, merged)), index, axis=dims[0], mode="clip"))


def _index_put(importer: Importer, node: fx.Node) -> Any:
    """`x[:, i, j] = values`, or `+=`: values scattered along the indexed dimensions, moved to the front for that."""
    emit = importer.block_builder.emit
    x, dims, index = _flat_index(importer, node)
    moved = _moved(importer, x, dims)
    shape = [int(size) for size in moved.ty.shape]
    rest, at = shape[len(dims) :], [int(size) for size in index.ty.shape]
    values = importer.env[node.args[2]]
    target = [*at, *rest]
    if dims == list(range(dims[0], dims[-1] + 1)):  # then the values have the index's dimensions in their place
        here = list(range(dims[0], dims[0] + len(at)))
        values = emit(relax.op.broadcast_to(values, [*rest[: dims[0]], *at, *rest[dims[0] :]]))
        values = _moved(importer, values, here)
    else:
        values = emit(relax.op.broadcast_to(values, target))
    result = relax.op.scatter_nd(
        emit(relax.op.reshape(moved, [math.prod(shape[: len(dims)]), *rest])),
        emit(relax.op.reshape(index, [math.prod(at), 1])),
        emit(relax.op.reshape(values, [math.prod(at), *rest])),
        "add" if argument(node, 3, "accumulate", False) else "update",
    )
    order = [*dims, *(dim for dim in range(x.ty.ndim) if dim not in dims)]
    result = emit(relax.op.reshape(emit(result), shape))
    return emit(relax.op.permute_dims(result, [order.index(dim) for dim in range(x.ty.ndim)]))


def _flat_index(importer: Importer, node: fx.Node) -> tuple[Any, list[int], Any]:
    """Of an indexing operator: what is indexed, which of its dimensions, and the index over all of these at once."""
    emit, env = importer.block_builder.emit, importer.env
    x = env[node.args[0]]
    indices: Any = node.args[1]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if any(indices[dim].meta["val"].dtype in (torch.bool, torch.uint8) for dim in dims):
        raise ValueError("the result's shape depends on values")
    flat = relax.const(0, "int64")
    for dim in dims:
        size = int(x.ty.shape[dim])
        index = _inside(importer, env[indices[dim]], size, from_end=True)
        flat = emit(relax.op.add(emit(relax.op.multiply(flat, relax.const(size, "int64"))), index))
    return x, dims, flat


def _inside(importer: Importer, index: Any, size: int, *, from_end: bool = False) -> Any:
    """An index as int64 from 0 to `size - 1`, whatever it holds; with `from_end`, negative ones count from the end."""
    emit = importer.block_builder.emit
    if size == 0 and 0 not in [int(length) for length in index.ty.shape]:
        raise ValueError("it takes values along a dimension that has none")
    zero, last = relax.const(0, "int64"), relax.const(size - 1, "int64")
    index = emit(relax.op.astype(index, "int64"))
    if from_end:
        wrapped = emit(relax.op.add(index, relax.const(size, "int64")))
        index = emit(relax.op.where(emit(relax.op.less(index, zero)), wrapped, index))
    return emit(relax.op.maximum(emit(relax.op.minimum(index, last)), zero))


def _moved(importer: Importer, x: Any, dims: list[int]) -> Any:
    """`x` with `dims` as its first dimensions."""
    order = [*dims, *(dim for dim in range(x.ty.ndim) if dim not in dims)]
    return importer.block_builder.emit(relax.op.permute_dims(x, order))


def _along(importer: Importer, node: fx.Node) -> tuple[Any, int, Any]:
    """Of an operator along a dimension: what is indexed, the dimension, and the index."""
    x, index = importer.env[node.args[0]], importer.env[node.args[2]]
    dim = int(node.args[1]) % x.ty.ndim  # type: ignore[arg-type]
    return x, dim, _inside(importer, index, int(x.ty.shape[dim]))


def _gather(importer: Importer, node: fx.Node) -> Any:
    x, dim, index = _along(importer, node)
    return importer.block_builder.emit(relax.op.gather_elements(x, index, axis=dim))


def _index_select(importer: Importer, node: fx.Node) -> Any:
    x, dim, index = _along(importer, node)
    return importer.block_builder.emit(relax.op.take(x, index, axis=dim, mode="clip"))


def _embedding(importer: Importer, node: fx.Node) -> Any:
    table, ids = importer.env[node.args[0]], importer.env[node.args[1]]
    ids = _inside(importer, ids, int(table.ty.shape[0]))
    return importer.block_builder.emit(relax.op.take(table, ids, axis=0, mode="clip"))


def _scatter(reduction: str, importer: Importer, node: fx.Node) -> Any:
    x, dim, index = _along(importer, node)
    emit, source = importer.block_builder.emit, node.args[3]
    sizes = [int(size) for size in index.ty.shape]
    if isinstance(source, fx.Node):  # PyTorch reads of it what the index covers
        begin = [0] * len(sizes)
        values = emit(relax.op.strided_slice(importer.env[source], list(range(len(sizes))), begin, sizes))
    else:
        values = emit(relax.op.broadcast_to(relax.const(source, str(x.ty.dtype)), sizes))
    return emit(relax.op.scatter_elements(x, index, values, dim, reduction))


CONVERTERS: Mapping[str, Callable[[Importer, fx.Node], Any]] = {
    "index.Tensor": _index,
    "index_put.default": _index_put,
    "_unsafe_index_put.default": _index_put,
    "index_select.default": _index_select,
    "gather.default": _gather,
    "embedding.default": _embedding,
    "scatter.src": partial(_scatter, "update"),
    "scatter.value": partial(_scatter, "update"),
    "scatter_add.default": partial(_scatter, "add"),
}
