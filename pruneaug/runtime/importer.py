"""TVM's importer of PyTorch programs, mended: every value that it makes is checked, and some are made otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from pruneaug.errors import CompileError
from pruneaug.runtime.graph import dtype_name

_RANDOM = torch.Tag.nondeterministic_seeded
_MOST_FOLDED = 1 << 20  # values; larger constants are computed when the network runs


class Importer(ExportedProgramImporter):  # type: ignore[misc]
    """Imports a program of core ATen operators with static shapes.

    What depends on no input is computed by PyTorch on the way. Raises CompileError for an operator that TVM does not
    know, refuses, or imports as something of another shape or dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[fx.Node, torch.Tensor] = {}

    def create_convert_map(self) -> Mapping[str, Callable[[fx.Node], Any]]:
        converters = super().create_convert_map() | {
            name: partial(convert, self) for name, convert in _CONVERTERS.items()
        }
        for name in _WRONG:
            del converters[name]
        return _AnyName({name: partial(self._convert, convert) for name, convert in converters.items()}, self._convert)

    def _check_unsupported_func_type(self, nodes: Sequence[fx.Node]) -> None:
        """Left to `_convert`: what folds needs no converter."""

    def _convert(self, convert: Callable[[fx.Node], Any] | None, node: fx.Node) -> Any:
        if (folded := self._folded(node)) is not None:
            return folded
        if convert is None:
            raise CompileError(f"TVM has no operator for {node.target}")
        if isinstance(node.target, torch._ops.OpOverload) and _RANDOM in node.target.tags:
            raise CompileError(f"{node.target} is random, and would be compiled as if it were not")
        try:
            value = convert(node)
        except Exception as error:
            raise CompileError(f"TVM does not accept {node.format_node()}: {error}") from error
        _check(node, value)
        return value

    def _folded(self, node: fx.Node) -> Any:
        val = node.meta.get("val")
        if (
            not isinstance(node.target, torch._ops.OpOverload)
            or not isinstance(val, torch.Tensor)
            or val.numel() > _MOST_FOLDED
            or _RANDOM in node.target.tags
            or not all(source in self._known for source in node.all_input_nodes)
        ):
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._known.__getitem__)
        self._known[node] = value = node.target(*args, **kwargs).contiguous()
        return relax.const(value.numpy(), dtype_name(value.dtype))


class _AnyName(dict[str, Callable[[fx.Node], Any]]):
    """Converters by operator's name; for an unknown name the one of None."""

    def __init__(self, converters: Mapping[str, Callable[[fx.Node], Any]], convert: Callable[..., Any]) -> None:
        super().__init__(converters)
        self._convert = convert

    def __missing__(self, name: str) -> Callable[[fx.Node], Any]:
        return partial(self._convert, None)


def _check(node: fx.Node, value: Any) -> None:
    """That what stands for a node has its shape and dtype."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or not isinstance(value, relax.Expr):
        return
    shape, dtype = [int(size) for size in value.ty.shape], str(value.ty.dtype)
    if shape != list(val.shape) or dtype != dtype_name(val.dtype):
        raise CompileError(
            f"TVM takes {node.format_node()} for a tensor {dtype} {shape} instead of "
            f"{dtype_name(val.dtype)} {list(val.shape)}"
        )


def _argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
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
        "add" if _argument(node, 3, "accumulate", False) else "update",
    )
    order = [*dims, *(dim for dim in range(x.ty.ndim) if dim not in dims)]
    result = emit(relax.op.reshape(emit(result), shape))
    return emit(relax.op.permute_dims(result, [order.index(dim) for dim in range(x.ty.ndim)]))


def _flat_index(importer: Importer, node: fx.Node) -> tuple[Any, list[int], Any]:
    """Of an indexing operator: what is indexed, which of its dimensions, and the index over all of these at once.

    Negative indices count from the end.
    """
    emit, env = importer.block_builder.emit, importer.env
    x = env[node.args[0]]
    indices: Any = node.args[1]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if any(indices[dim].meta["val"].dtype in (torch.bool, torch.uint8) for dim in dims):
        raise ValueError("the result's shape depends on values")
    flat = relax.const(0, "int64")
    for dim in dims:
        size = relax.const(int(x.ty.shape[dim]), "int64")
        index = emit(relax.op.astype(env[indices[dim]], "int64"))
        is_negative = emit(relax.op.less(index, relax.const(0, "int64")))
        index = emit(relax.op.where(is_negative, emit(relax.op.add(index, size)), index))
        flat = emit(relax.op.add(emit(relax.op.multiply(flat, size)), index))
    return x, dims, flat


def _moved(importer: Importer, x: Any, dims: list[int]) -> Any:
    """`x` with `dims` as its first dimensions."""
    order = [*dims, *(dim for dim in range(x.ty.ndim) if dim not in dims)]
    return importer.block_builder.emit(relax.op.permute_dims(x, order))


def _select(importer: Importer, node: fx.Node) -> Any:
    x, dim, index = importer.env[node.args[0]], int(node.args[1]), int(node.args[2])  # type: ignore[arg-type]
    emit = importer.block_builder.emit
    dim %= x.ty.ndim
    index %= int(x.ty.shape[dim])
    piece = emit(relax.op.strided_slice(x, axes=[dim], begin=[index], end=[index + 1]))
    return emit(relax.op.squeeze(piece, [dim]))


def _index_select(importer: Importer, node: fx.Node) -> Any:
    x, dim, index = importer.env[node.args[0]], node.args[1], importer.env[node.args[2]]
    return importer.block_builder.emit(relax.op.take(x, index, axis=dim, mode="clip"))


def _embedding(importer: Importer, node: fx.Node) -> Any:
    weight, ids = importer.env[node.args[0]], importer.env[node.args[1]]
    return importer.block_builder.emit(relax.op.take(weight, ids, axis=0, mode="clip"))


def _reduce(op: Callable[..., Any], importer: Importer, node: fx.Node) -> Any:
    x = importer.env[node.args[0]]
    dims = _argument(node, 1, "dim", None)
    emit = importer.block_builder.emit
    is_bool = str(x.ty.dtype) == "bool"
    if is_bool:
        x = emit(relax.op.astype(x, "int8"))
    dims = None if isinstance(dims, list | tuple) and not dims else dims
    result = emit(op(x, dims, bool(_argument(node, 2, "keepdim", False))))
    return emit(relax.op.astype(result, "bool")) if is_bool else result


def _matmul(importer: Importer, node: fx.Node) -> Any:
    return importer.block_builder.emit(relax.op.matmul(importer.env[node.args[0]], importer.env[node.args[1]]))


def _scatter(reduction: str, importer: Importer, node: fx.Node) -> Any:
    emit, env = importer.block_builder.emit, importer.env
    x, dim, index, source = node.args[:4]
    sizes = [int(size) for size in env[index].ty.shape]
    # PyTorch reads of the source what the index covers.
    values = emit(relax.op.strided_slice(env[source], list(range(len(sizes))), [0] * len(sizes), sizes))
    return emit(relax.op.scatter_elements(env[x], env[index], values, dim, reduction))


_WRONG = ("_upsample_bilinear2d_aa.default",)  # computed otherwise than by PyTorch
_CONVERTERS: dict[str, Callable[[Importer, fx.Node], Any]] = {
    "index.Tensor": _index,
    "index_put.default": _index_put,
    "_unsafe_index_put.default": _index_put,
    "select.int": _select,
    "index_select.default": _index_select,
    "embedding.default": _embedding,
    "amax.default": partial(_reduce, relax.op.max),
    "amin.default": partial(_reduce, relax.op.min),
    "prod.dim_int": partial(_reduce, relax.op.prod),
    "mm.default": _matmul,
    "bmm.default": _matmul,
    "scatter.src": partial(_scatter, "update"),
    "scatter_add.default": partial(_scatter, "add"),
}
