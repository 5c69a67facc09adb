"""TVM's importer of PyTorch programs, mended: every value that it makes is checked, and some are made otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import tvm
from torch import fx
from tvm import relax, te, tirx
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from pruneaug.errors import CompileError
from pruneaug.runtime import comparisons, indexing
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
        self.known: dict[fx.Node, torch.Tensor] = {}  # values that depend on no input

    def create_convert_map(self) -> Mapping[str, Callable[[fx.Node], Any]]:
        converters = super().create_convert_map() | {
            name: partial(convert, self) for name, convert in _CONVERTERS.items()
        }
        for name in _WRONG:
            del converters[name]
        return _AnyName({name: partial(self._convert, convert) for name, convert in converters.items()}, self._convert)

    def from_exported_program(self, *args: Any) -> tvm.IRModule:
        """Raises what a converter raises."""
        try:
            return super().from_exported_program(*args)
        except Exception:
            self.block_builder._end_block()  # or TVM warns that it is still open
            raise

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
            or not all(source in self.known for source in node.all_input_nodes)
        ):
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.known.__getitem__)
        self.known[node] = value = node.target(*args, **kwargs).contiguous()
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


def _select(importer: Importer, node: fx.Node) -> Any:
    x, dim, index = importer.env[node.args[0]], int(node.args[1]), int(node.args[2])  # type: ignore[arg-type]
    emit = importer.block_builder.emit
    dim %= x.ty.ndim
    index %= int(x.ty.shape[dim])
    piece = emit(relax.op.strided_slice(x, axes=[dim], begin=[index], end=[index + 1]))
    return emit(relax.op.squeeze(piece, [dim]))


def _product(importer: Importer, node: fx.Node) -> Any:
    dim, keepdim = indexing.argument(node, 1, "dim", None), bool(indexing.argument(node, 2, "keepdim", False))
    return comparisons.reduced(relax.op.prod, importer, importer.env[node.args[0]], [dim], keepdim)


def _to_copy(importer: Importer, node: fx.Node) -> Any:
    """A cast. One to bfloat16 rounds before: TVM leaves a cast out that another one follows."""
    if node.kwargs.get("dtype") != torch.bfloat16:
        return ExportedProgramImporter._to_copy(importer, node)
    emit = importer.block_builder.emit
    x = emit(relax.op.astype(importer.env[node.args[0]], "float32"))
    return emit(relax.op.astype(emit(importer.block_builder.call_te(_rounded, x)), "bfloat16"))


def _rounded(x: Any) -> Any:
    """float32 values that bfloat16 has, the nearest ones; of two the even one."""

    def nearest(*at: Any) -> Any:
        bits = tirx.reinterpret("uint32", x(*at))
        one = tirx.const(1, "uint32")
        bits = bits + tirx.const(0x7FFF, "uint32") + ((bits >> tirx.const(16, "uint32")) & one)
        rounded = tirx.reinterpret("float32", bits & tirx.const(0xFFFF0000, "uint32"))
        return tirx.Select(tirx.isnan(x(*at)), x(*at), rounded)

    return te.compute(x.shape, nearest, name="rounded")


def _matmul(importer: Importer, node: fx.Node) -> Any:
    return importer.block_builder.emit(relax.op.matmul(importer.env[node.args[0]], importer.env[node.args[1]]))


_WRONG = (
    "_upsample_bilinear2d_aa.default",  # computed otherwise than by PyTorch
    "roi_align.default",  # reads foreign memory for a box in an image that is not there
)
_CONVERTERS: dict[str, Callable[[Importer, fx.Node], Any]] = {
    **indexing.CONVERTERS,
    **comparisons.CONVERTERS,
    "_to_copy.default": _to_copy,
    "select.int": _select,
    "prod.dim_int": _product,
    "mm.default": _matmul,
    "bmm.default": _matmul,
}
