"""Loads of a convolution: for a tile of output positions, the input values that chunks of the weight matrix meet.

Images are [batch, height, width, channels], and a chunk is channels of one tap (ky, kx) of the kernel. Where a position
reads is the sum of two parts: that of its tap (0, 0), which a thread computes once for each row of the tile that it
copies, and that of the chunk, which is the same for all rows and was computed when the weights were packed. What lies
outside of an image becomes zero in shared memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from tvm.script import tirx as T

from pruneaug.kernels.cuda import fragments as gpu
from pruneaug.kernels.cuda.formats import PIECE, place
from pruneaug.kernels.cuda.loads import Loader, ReadValue, WriteValue, value_by_value
from pruneaug.kernels.cuda.shapes import ImageScalars, Shape
from pruneaug.kernels.cuda.variants import CudaVariant

_OUTSIDE = -(1 << 30)  # a row of an image that no tap moves into it


class Positions(NamedTuple):
    """Where tap (0, 0) of output positions reads: arrays of one thread, a value for each row that it copies."""

    start: Any  # of the channels there, in x
    y: Any  # row and column of the image, in the padding outside of it
    x: Any


class Tap(NamedTuple):
    """Where a chunk reads, from where tap (0, 0) does."""

    offset: Any  # of its first channel, in x
    down: Any  # rows of the image
    right: Any  # columns of the image
    channel: Any  # its first; those from the number of channels on are zero


def tile_positions(variant: CudaVariant, scalars: ImageScalars, token: Any, thread: Any) -> Positions:
    """The positions of the rows that a thread copies, in a tile of output positions from `token`."""
    positions = Positions(*(gpu.registers(gpu.rows_of_thread(variant), "int32") for _ in Positions._fields))

    def one(i: int, row: Any) -> None:
        position = T.bind(token + row)
        image, within = _divided(position, scalars.out_positions)
        out_y, out_x = _divided(within, scalars.out_width)
        y = T.bind(out_y * scalars.stride_y - scalars.top)
        x = T.bind(out_x * scalars.stride_x - scalars.left)
        T.buffer_store(positions.start, ((image * scalars.height + y) * scalars.width + x) * scalars.x_stride, [i])
        T.buffer_store(positions.y, T.Select(position < scalars.tokens, y, _OUTSIDE), [i])
        T.buffer_store(positions.x, x, [i])

    gpu.each_row(variant, thread, one)
    return positions


def image_loader(
    shape: Shape, x: Any, taps: Any, scalars: ImageScalars, shared: Any, token: Any, thread: Any
) -> Loader:
    """The loads of a tile [output positions, depth] for positions from `token`."""
    positions = tile_positions(shape.variant, scalars, token, thread)
    return (_gather if shape.gathers else _copy)(shape, x, taps, scalars, positions, shared, thread)


def _copy(
    shape: Shape, x: Any, taps: Any, scalars: ImageScalars, positions: Positions, shared: Any, thread: Any
) -> Loader:
    """By copies of 16 bytes."""
    form, variant, chunk = shape.form, shape.variant, shape.chunk
    q = T.bind(thread % variant.pieces)
    column = q * form.per_piece
    words = gpu.registers(4)

    def look_up(packed: Any) -> None:
        _load_tap(taps, packed * (variant.columns(form) // chunk) + column // chunk, words)

    def copy(base: Any, packed: Any) -> None:
        tap = _tap(words)
        offset = T.bind(tap.offset + column % chunk)
        channels = scalars.x_limit - tap.channel - column % chunk  # those from here on
        size = T.bind(T.max(T.min(channels * form.size, PIECE), 0))  # bytes

        def piece(i: int, row: Any) -> None:
            inside = T.bind(_is_inside(positions, i, tap, scalars))
            start = T.Select(inside, positions.start[i] + offset, 0)
            to = base + row * variant.row_bytes + place(row, q, variant.pieces) * PIECE
            gpu.copy_async(shared, to, x.ptr_to([start]), T.Select(inside, size, 0))

        gpu.each_row(variant, thread, piece)

    return Loader(look_up, copy)


def _gather(
    shape: Shape, x: Any, taps: Any, scalars: ImageScalars, positions: Positions, shared: Any, thread: Any
) -> Loader:
    """`_copy` of chunks that are shorter than 16 bytes: value by value."""
    form, variant, chunk = shape.form, shape.variant, shape.chunk
    words, rows = gpu.registers(4), gpu.rows_of_thread(variant)
    q = T.bind(thread % variant.pieces)

    def read(packed: Any, body: ReadValue) -> None:
        first = T.bind(packed * (variant.columns(form) // chunk) + q * (form.per_piece // chunk))  # chunk of the piece
        for i in range(form.per_piece // chunk):
            _load_tap(taps, first + i, words)
            tap = _tap(words)
            for within in range(chunk):
                gpu.each_row(variant, thread, partial(one, body, tap, (i * chunk + within) * rows, within))

    def one(body: ReadValue, tap: Tap, number: int, within: int, n: int, _: Any) -> None:
        inside = T.And(_is_inside(positions, n, tap, scalars), tap.channel + within < scalars.x_limit)
        body(number + n, inside, positions.start[n] + tap.offset + within)

    def write(base: Any, body: WriteValue) -> None:
        for value in range(form.per_piece):
            gpu.each_row(variant, thread, partial(to, base, body, value))

    def to(base: Any, body: WriteValue, value: int, n: int, row: Any) -> None:
        byte = base + row * variant.row_bytes + place(row, q, variant.pieces) * PIECE + value * form.size
        body(value * rows + n, byte)

    return value_by_value(shape, x, shared, read, write)


def _divided(number: Any, by: Any) -> tuple[Any, Any]:
    """Quotient and rest of a number that is not negative."""
    return T.bind(T.truncdiv(number, by)), T.bind(T.truncmod(number, by))


def _load_tap(taps: Any, entry: Any, words: Any) -> None:
    """The numbers of a chunk's tap, from `taps` int32 [chunks * 4], to four registers."""
    gpu.load_words(words, taps.ptr_to([entry * 4]), 4)


def _tap(words: Any) -> Tap:
    return Tap(*(T.bind(T.reinterpret("int32", words[i])) for i in range(4)))


def _is_inside(positions: Positions, i: int, tap: Tap, scalars: ImageScalars) -> Any:
    """Whether a tap of the thread's i-th row reads inside of the image."""

    def within(at: Any, size: Any) -> Any:
        # One comparison for both ends: as an unsigned number what is negative is large.
        return T.Cast("uint32", at) < T.Cast("uint32", size)

    return T.And(
        within(positions.y[i] + tap.down, scalars.height),
        within(positions.x[i] + tap.right, scalars.width),
    )
