"""Operators that compare values, for TVM's importer: with NaN and infinities as PyTorch compares them.

For TVM, of two values one of which is NaN, the maximum and minimum are the second; NaN is unequal to nothing, not even
to itself; and the maximum of negative infinities is the least finite value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import fx
from tvm import relax, te, tirx, topi

from pruneaug.runtime.indexing import argument

if TYPE_CHECKING:
    from pruneaug.runtime.importer import Importer


def _extremum(is_max: bool, importer: Importer, node: fx.Node) -> Any:
    """The largest or smallest value along dimensions; NaN if there is one."""
    x, dims = importer.env[node.args[0]], argument(node, 1, "dim", None)
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.ty.ndim))
    keepdim = bool(argument(node, 2, "keepdim", False))
    if _is_float(x) and dims:
        return _extremum_of_floats(is_max, importer, x, dims, keepdim)
    return reduced(relax.op.max if is_max else relax.op.min, importer, x, dims, keepdim)


def reduced(op: Callable[..., Any], importer: Importer, x: Any, dims: Sequence[int], keepdim: bool) -> Any:
    """TVM's reduction along dimensions, all if there are none; it computes booleans as integers."""
    emit, is_bool = importer.block_builder.emit, str(x.ty.dtype) == "bool"
    result = emit(op(emit(relax.op.astype(x, "int8")) if is_bool else x, list(dims) or None, keepdim))
    return emit(relax.op.astype(result, "bool")) if is_bool else result


def _extremum_of_floats(is_max: bool, importer: Importer, x: Any, dims: list[int], keepdim: bool) -> Any:
    """By two of TVM's reductions: the extremum of the finite values, and whether there is another value beside them."""
    reduce = topi.max if is_max else topi.min

    def extremum(x: Any) -> Any:
        wide = _isnan_dtype(x.dtype)
        nan, least = (tirx.const(value, x.dtype) for value in (math.nan, -math.inf if is_max else math.inf))
        nothing, value, invalid = (tirx.const(rank, x.dtype) for rank in range(3))

        def rank(*at: Any) -> Any:
            given = x(*at)
            return tirx.Select(tirx.isnan(given.astype(wide)), invalid, tirx.Select(given.equal(least), nothing, value))

        found, most = reduce(x, dims, keepdim), topi.max(te.compute(x.shape, rank), dims, keepdim)
        return te.compute(
            found.shape,
            lambda *at: tirx.Select(most(*at) > value, nan, tirx.Select(most(*at) < value, least, found(*at))),
        )

    return importer.block_builder.emit(importer.block_builder.call_te(extremum, x))


def _index_of_extremum(is_max: bool, importer: Importer, node: fx.Node) -> Any:
    """The index of the first value that is the largest or smallest one, or of the first NaN."""
    emit, x = importer.block_builder.emit, importer.env[node.args[0]]
    dim, keepdim = argument(node, 1, "dim", None), bool(argument(node, 2, "keepdim", False))
    if x.ty.ndim == 0:
        return relax.const(0, "int64")
    if not _is_float(x):
        return emit((relax.op.argmax if is_max else relax.op.argmin)(x, dim, keepdim))
    # TVM's own finds no index for a row of infinities, and passes NaN over.
    dims = list(range(x.ty.ndim)) if dim is None else [dim % x.ty.ndim]
    extremum = _extremum_of_floats(is_max, importer, x, dims, True)

    def first(x: Any, extremum: Any) -> Any:
        wide, none = _isnan_dtype(x.dtype), tirx.max_value("int32")

        def place(*at: Any) -> Any:
            value = x(*at)
            index = tirx.const(0, "int32")
            for dim in dims:
                index = index * int(x.shape[dim]) + at[dim].astype("int32")
            is_found = value.equal(extremum(*(0 if dim in dims else i for dim, i in enumerate(at))))
            return tirx.Select(tirx.any(tirx.isnan(value.astype(wide)), is_found), index, none)

        return topi.cast(topi.min(te.compute(x.shape, place), dims, keepdim), "int64")

    return emit(importer.block_builder.call_te(first, x, extremum))


def _extremum_of_two(is_max: bool, importer: Importer, node: fx.Node) -> Any:
    emit = importer.block_builder.emit
    a, b = importer.env[node.args[0]], importer.env[node.args[1]]
    result = emit((relax.op.maximum if is_max else relax.op.minimum)(a, b))
    known = importer.known.get(node.all_input_nodes[0])
    if not _is_float(a) or (known is not None and not known.isnan().any()):
        return result
    return emit(relax.op.where(_is_nan(importer, a), a, result))


def _equal(importer: Importer, node: fx.Node) -> Any:
    emit, a = importer.block_builder.emit, importer.env[node.args[0]]
    if node.args[0] is node.args[1] and _is_float(a):
        return emit(relax.op.logical_not(_is_nan(importer, a)))
    return emit(relax.op.equal(a, importer.env[node.args[1]]))


def _not_equal(importer: Importer, node: fx.Node) -> Any:
    """NaN is equal to nothing."""
    emit, a = importer.block_builder.emit, importer.env[node.args[0]]
    b = importer.env[node.args[1]] if isinstance(node.args[1], fx.Node) else relax.const(node.args[1], str(a.ty.dtype))
    differ = emit(relax.op.not_equal(a, b))
    for operand in node.all_input_nodes:
        x, known = importer.env[operand], importer.known.get(operand)
        if _is_float(x) and (known is None or bool(known.isnan().any())):
            differ = emit(relax.op.logical_or(differ, _is_nan(importer, x)))
    return differ


def _is_nan(importer: Importer, x: Any) -> Any:
    emit = importer.block_builder.emit
    return emit(relax.op.isnan(emit(relax.op.astype(x, _isnan_dtype(x.ty.dtype)))))


def _isnan_dtype(dtype: Any) -> str:
    """In which a value of this dtype is told to be NaN: TVM cannot in bfloat16."""
    return "float32" if str(dtype) == "bfloat16" else str(dtype)


def _is_float(x: Any) -> bool:
    return "float" in str(x.ty.dtype)


CONVERTERS: Mapping[str, Callable[[Importer, fx.Node], Any]] = {
    "amax.default": partial(_extremum, True),
    "amin.default": partial(_extremum, False),
    "max.default": partial(_extremum, True),
    "min.default": partial(_extremum, False),
    "argmax.default": partial(_index_of_extremum, True),
    "argmin.default": partial(_index_of_extremum, False),
    "maximum.default": partial(_extremum_of_two, True),
    "minimum.default": partial(_extremum_of_two, False),
    "isnan.default": lambda importer, node: _is_nan(importer, importer.env[node.args[0]]),
    "eq.Tensor": _equal,
    "ne.Tensor": _not_equal,
    "ne.Scalar": _not_equal,
}
