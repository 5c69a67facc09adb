"""Loads of a linear layer: packed weights, and the columns of X that belong to them, to shared memory.

A thread copies the same pieces of each tile. Where they lie in X is known once the tile's offsets are read, which is
done a tile earlier: reads of all its pieces are on their way at once, and no copy waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tvm.script import tirx as T

from pruneaug.kernels.cuda import fragments as gpu
from pruneaug.kernels.cuda.formats import PIECE, place
from pruneaug.kernels.cuda.shapes import ROWS, Scalars, Shape
from pruneaug.kernels.cuda.variants import CudaVariant


class Loader(NamedTuple):
    """Loads of the part of X that belongs to a tile of the weights; `packed` is the number of the tile."""

    look_up: Callable[[Any], None]  # f(packed): reads where the tile's columns lie
    copy: Callable[[Any, Any], None]  # f(base, packed): copies them to byte `base`; they were looked up just before


def load_weight(variant: CudaVariant, weight: Any, shared: Any, base: Any, packed: Any, thread: Any) -> None:
    """A tile of weights, which lies in memory as it will lie at byte `base`."""
    pieces = variant.outputs * variant.pieces
    words = PIECE // 4
    gpu.each(
        pieces,
        thread,
        variant.threads,
        lambda _, i: gpu.copy_async(
            shared, base + i * PIECE, weight.ptr_to([packed * (pieces * words) + i * words]), PIECE
        ),
    )


def linear_loader(shape: Shape, x: Any, offset: Any, scalars: Scalars, shared: Any, token: Any, thread: Any) -> Loader:
    """The loads for tokens from `token`; what is behind the last token or column becomes zero."""
    if shape.gathers:
        return _gather_rows(shape, x, offset, scalars, shared, token, thread)
    return (_copy_rows if shape.layout == ROWS else _copy_columns)(shape, x, offset, scalars, shared, token, thread)


def _copy_rows(shape: Shape, x: Any, offset: Any, scalars: Scalars, shared: Any, token: Any, thread: Any) -> Loader:
    """A tile [tokens, depth] of X [tokens, K]: a thread's pieces are those of one place in several rows."""
    form, variant, chunk = shape.form, shape.variant, shape.chunk
    q = T.bind(thread % variant.pieces)
    column = q * form.per_piece
    source = gpu.registers(1, "int32")

    def look_up(packed: Any) -> None:
        entry = packed * (variant.columns(form) // chunk) + column // chunk
        T.buffer_store(source, offset[entry] + column % chunk, [0])

    def copy(base: Any, packed: Any) -> None:
        inside = T.bind(T.max(T.min((scalars.x_limit - source[0]) * form.size, PIECE), 0))  # bytes

        def piece(i: int, row: Any) -> None:
            size = T.bind(T.Select(token + row < scalars.tokens, inside, 0))
            start = T.Select(size > 0, (token + row) * scalars.x_stride + source[0], 0)
            to = base + row * variant.row_bytes + place(row, q, variant.pieces) * PIECE
            gpu.copy_async(shared, to, x.ptr_to([start]), size)

        gpu.each_row(variant, thread, piece)

    return Loader(look_up, copy)


def _gather_rows(shape: Shape, x: Any, offset: Any, scalars: Scalars, shared: Any, token: Any, thread: Any) -> Loader:
    """`_copy_rows` of columns that do not follow each other: value by value, through a register."""
    form, variant, chunk = shape.form, shape.variant, shape.chunk
    depth = variant.columns(form)
    kind = f"b{8 * form.size}"
    value = gpu.registers(1, f"uint{8 * form.size}")

    def copy(base: Any, packed: Any) -> None:
        def one(_: int, i: Any) -> None:
            row, column = i // depth, i % depth
            source = T.bind(offset[packed * (depth // chunk) + column // chunk] + column % chunk)
            T.buffer_store(value, T.Cast(value.dtype, 0), [0])
            with T.If(T.And(token + row < scalars.tokens, source < scalars.x_limit)), T.Then():
                start = (token + row) * scalars.x_stride + source
                T.evaluate(T.ptx[f"ld.global.nc.{kind}"](value[0], x.ptr_to([start])))
            q, within = column // form.per_piece, column % form.per_piece * form.size
            to = base + row * variant.row_bytes + place(row, q, variant.pieces) * PIECE + within
            T.evaluate(T.ptx[f"st.shared.{kind}"](shared.ptr_to([to]), value[0]))

        gpu.each(variant.tokens * depth, thread, variant.threads, one)

    return Loader(lambda packed: None, copy)


def _copy_columns(shape: Shape, x: Any, offset: Any, scalars: Scalars, shared: Any, token: Any, thread: Any) -> Loader:
    """A tile [depth, tokens] of X [K, tokens], in strips of up to 64 tokens: see `gpu.in_strips`."""
    form, variant, chunk = shape.form, shape.variant, shape.chunk
    depth, pieces = variant.columns(form), variant.tokens // form.per_piece
    sources = gpu.registers(-(-depth * pieces // variant.threads), "int32")

    def look_up(packed: Any) -> None:
        def one(number: int, i: Any) -> None:
            column = i // pieces
            entry = packed * (depth // chunk) + column // chunk
            T.buffer_store(sources, offset[entry] + column % chunk * scalars.x_stride, [number])

        gpu.each(depth * pieces, thread, variant.threads, one)

    def copy(base: Any, packed: Any) -> None:
        def piece(number: int, i: Any) -> None:
            column, q = i // pieces, i % pieces
            source = sources[number]
            position = T.bind(token + q * form.per_piece)
            inside = T.min((scalars.tokens - position) * form.size, PIECE)  # bytes
            size = T.bind(T.Select(source < scalars.x_limit, T.max(inside, 0), 0))
            start = T.Select(size > 0, source + position, 0)
            gpu.copy_async(shared, base + gpu.in_strips(shape, column, q), x.ptr_to([start]), size)

        gpu.each(depth * pieces, thread, variant.threads, piece)

    return Loader(look_up, copy)
