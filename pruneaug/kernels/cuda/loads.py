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

_WORD = 4  # bytes
_MOST_EARLY = 32  # values of a thread: with twice as many the largest tiles have no register left

ReadValue = Callable[[int, Any, Any], None]
WriteValue = Callable[[int, Any], None]


class Loader(NamedTuple):
    """Loads of the part of X that belongs to a tile of the weights; `packed` is the number of the tile."""

    look_up: Callable[[Any], None]  # f(packed): reads where the tile's columns lie, or already their values
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
    """`_copy_rows` of columns that do not follow each other: value by value."""
    form, variant, chunk = shape.form, shape.variant, shape.chunk
    depth = variant.columns(form)

    def each(body: Callable[[int, Any, Any], None]) -> None:
        gpu.each(variant.tokens * depth, thread, variant.threads, lambda n, i: body(n, i // depth, i % depth))

    def read(packed: Any, body: ReadValue) -> None:
        def one(n: int, row: Any, column: Any) -> None:
            source = T.bind(offset[packed * (depth // chunk) + column // chunk] + column % chunk)
            inside = T.And(token + row < scalars.tokens, source < scalars.x_limit)
            body(n, inside, (token + row) * scalars.x_stride + source)

        each(one)

    def write(base: Any, body: WriteValue) -> None:
        def one(n: int, row: Any, column: Any) -> None:
            q, within = column // form.per_piece, column % form.per_piece * form.size
            body(n, base + row * variant.row_bytes + place(row, q, variant.pieces) * PIECE + within)

        each(one)

    return value_by_value(shape, x, shared, read, write)


def value_by_value(
    shape: Shape,
    x: Any,
    shared: Any,
    read: Callable[[Any, ReadValue], None],
    write: Callable[[Any, WriteValue], None],
) -> Loader:
    """Loads value by value: 4 bytes by asynchronous copies, which take no fewer, 2 bytes by way of registers.

    `read(packed, body)` calls body(n, inside, start) for the n-th value of a thread: x[start], or zero where it is not
    `inside`; `write(base, body)` calls body(n, byte) with its byte of shared memory. A tile's values, or their places,
    are read while the one before is multiplied, if there are registers for both.
    """
    form, variant = shape.form, shape.variant
    values = -(-variant.tokens * variant.columns(form) // variant.threads)
    held = gpu.registers(values, "int32" if form.size == _WORD else "uint16")

    def read_value(n: int, inside: Any, start: Any) -> None:
        T.buffer_store(held, T.Cast(held.dtype, 0), [n])
        with T.If(inside), T.Then():
            T.evaluate(T.ptx["ld.global.nc.b16"](held[n], x.ptr_to([start])))

    def write_value(n: int, byte: Any) -> None:
        T.evaluate(T.ptx["st.shared.b16"](shared.ptr_to([byte]), held[n]))

    def read_place(n: int, inside: Any, start: Any) -> None:
        T.buffer_store(held, T.Select(inside, start, -1), [n])

    def copy_word(n: int, byte: Any) -> None:
        source = x.ptr_to([T.max(held[n], 0)])
        gpu.copy_async(shared, byte, source, T.Select(held[n] < 0, 0, _WORD), _WORD)

    read_one, write_one = (read_place, copy_word) if form.size == _WORD else (read_value, write_value)
    if values <= _MOST_EARLY:
        return Loader(lambda packed: read(packed, read_one), lambda base, _: write(base, write_one))

    def copy(base: Any, packed: Any) -> None:
        read(packed, read_one)
        write(base, write_one)

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
