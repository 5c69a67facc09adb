"""Pieces of TIR that kernels of images and tokens share: runs of float32 values in vectors, rows, borders.

A function that takes a buffer emits statements (or returns an expression) where the kernel's body calls it, inside the
`prim_func` that is being built. "Masked" accesses touch no memory but that of the lanes they are asked for, so that
the end of a row or of a buffer needs neither scalar loops nor values behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder.ir import prim_func as prim_func_frame

from pruneaug.kernels.planes import Planes

_SERIAL = 8192  # values of output for which starting threads costs more than it saves
_TASKS = 16  # that few channels are cut into bands of rows


def prim_func(dtypes: Sequence[str], body: Callable[..., None]) -> Any:
    """A TIR function of flat arrays of these dtypes, the output last; `body` gets their buffers and emits it.

    This builds a function that has a number of arguments, or a body, which TVMScript's parser cannot express.
    """
    with IRBuilder() as builder, prim_func_frame(s_tir=True):
        T.func_name("kernel")
        T.func_attr({"tirx.noalias": True})
        handles = [T.arg(f"array_{i}", T.handle()) for i in range(len(dtypes))]
        body(*(T.match_buffer(handle, (T.int32(),), dtype) for handle, dtype in zip(handles, dtypes)))
    return builder.get()


def tasks(count: int, values: int, body: Callable[[Any], None]) -> None:
    """body(i) for i < count, in parallel where the output has enough values."""
    loop = T.serial if values < _SERIAL or count == 1 else T.parallel
    with loop(count) as task, T.sblock("task"):
        T.reads()
        T.writes()
        body(task)


def bands_of(planes: Planes, lanes: int) -> int:
    """Into how many bands of rows each image is cut so that there are tasks for all threads; each has 64 vectors."""
    wanted = -(-_TASKS // (planes.images * planes.channels))
    return max(1, min(wanted, planes.rows, planes.rows * planes.pitch // (64 * lanes)))


def constant(value: float, lanes: int) -> Any:
    """A vector of equal values."""
    return T.broadcast(T.float32(value), lanes)


def below(count: Any, lanes: int) -> Any:
    """A mask of the lanes < count."""
    return T.ramp(0, 1, lanes) < T.broadcast(T.int32(count) if isinstance(count, int) else count, lanes)


def load(buffer: Any, start: Any, lanes: int, count: Any = None) -> Any:
    """The vector at `start`; with `count`, only its first `count` lanes are read, the others are undefined."""
    run = T.ramp(start, 1, lanes)
    if count is None or (isinstance(count, int) and count >= lanes):
        return buffer[run]
    return T.masked_load(f"float32x{lanes}", buffer, run, below(count, lanes))


def store(buffer: Any, start: Any, value: Any, lanes: int, count: Any = None) -> None:
    """Write a vector at `start`; with `count`, only its first `count` lanes."""
    run = T.ramp(start, 1, lanes)
    if count is None or (isinstance(count, int) and count >= lanes):
        T.buffer_store(buffer, value, [run])
    else:
        T.evaluate(T.masked_store(buffer, value, run, below(count, lanes)))


def prefetch(buffer: Any, index: Any) -> None:
    """Ask for the cache line of a value that is read soon; one behind the buffer's end does no harm."""
    read, into_all_caches, data = T.int32(0), T.int32(3), T.int32(1)
    T.evaluate(
        T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(buffer[index]), read, into_all_caches, data)
    )  # fmt: skip


def kept(value: Any, count: Any, other: float, lanes: int) -> Any:
    """The first `count` lanes of a vector, and `other` in the rest."""
    if isinstance(count, int) and count >= lanes:
        return value
    # Bound outside of the select: TVM takes the mask of a load inside it for true, and would read all lanes.
    return T.Select(below(count, lanes), T.bind(value), constant(other, lanes))


def clip(value: Any, bounds: Any, lanes: int) -> Any:
    """A vector (or a scalar, of one lane) between bounds[0] and bounds[1]; NaN stays NaN."""
    low, high = (bounds[i] if lanes == 1 else T.broadcast(bounds[i], lanes) for i in range(2))
    # The order of the arguments keeps NaN: max(low, NaN) is NaN, max(NaN, low) is low.
    return T.min(high, T.max(low, value))


def every_second(first: Any, second: Any, lanes: int) -> Any:
    """Values 0, 2, 4... of two vectors that follow each other."""
    return T.Shuffle([first, second], list(range(0, 2 * lanes, 2)))


def transposed(rows: Sequence[Any]) -> list[Any]:
    """The columns of a square of vectors, as many as they have lanes (a power of two)."""
    lanes = len(rows)
    vectors = [T.bind(row) for row in rows]
    distance = lanes // 2
    while distance:
        # Swap the upper right with the lower left of each square of 2 * distance.
        for i in (i for i in range(lanes) if not i & distance):
            pair = [vectors[i], vectors[i + distance]]
            upper = [j + lanes - distance if j & distance else j for j in range(lanes)]
            vectors[i] = T.bind(T.Shuffle(pair, upper))
            vectors[i + distance] = T.bind(T.Shuffle(pair, [j + distance for j in upper]))
        distance //= 2
    return vectors


def sum_of(vector: Any, lanes: int) -> Any:
    """The sum of the values of one vector (their number is a power of two)."""
    while lanes > 1:
        lanes //= 2
        halves = [T.Shuffle([vector], list(range(start, start + lanes))) for start in (0, lanes)]
        vector = T.bind(halves[0] + halves[1])
    return vector


def opaque(value: Any) -> Any:
    """The int32 value, in a variable that TVM does not look into.

    What `T.bind` binds is simplified again in every index that it is part of, which can take seconds of compiling.
    """
    cell = T.sblock_alloc_buffer((1,), "int32", scope="global")
    T.buffer_store(cell, value, [0])
    return cell[0]


def scratch(size: int) -> Any:
    """A small float32 array of one task; one that is only accessed at one index stays in a register.

    Scope "local" would be memory that each task asks the runtime for, as arrays of 1 KiB and more are in any scope.
    """
    return T.sblock_alloc_buffer((size,), "float32", scope="global")


def fill(buffer: Any, start: Any, vectors: Any, lanes: int, value: Any = 0.0) -> None:
    """Write `vectors` vectors of one value, a number or an expression."""
    if not isinstance(vectors, int) or vectors:
        with T.serial(vectors) as v:
            scalar = T.float32(value) if isinstance(value, float) else value
            store(buffer, start + v * lanes, T.broadcast(scalar, lanes), lanes)


def clear_around(y: Any, base: Any, image: Any, planes: Planes, lanes: int, band: Any = 0, bands: int = 1) -> None:
    """Zeros before the first and behind the last position of the image at `base`; nothing without a zero border.

    It must come before the values are written: the zeros begin at a whole vector, and may cover the last values. Only
    the first of several bands clears what is before, the last what is behind.
    """
    if not planes.zero_border:
        return
    behind = (planes.lead + planes.positions) // lanes * lanes
    slack = planes.channel_stride - planes.images * planes.image_stride
    with T.If(T.int32(0) == band), T.Then():
        fill(y, base, planes.lead // lanes, lanes)
    with T.If(T.int32(bands - 1) == band), T.Then():
        fill(y, base + behind, (planes.image_stride - behind) // lanes, lanes)
        with T.If(image == planes.images - 1), T.Then():
            fill(y, base + planes.image_stride, slack // lanes, lanes)


def store_row(
    y: Any,
    start: Any,
    row: Any,
    planes: Planes,
    lanes: int,
    whole: int,
    values: Callable[[Any], Any],
    tail: Callable[[int], Any],
) -> None:
    """Write a row of planes at `start` and, with a zero border, the gap up to the next row.

    values(x) is the vector at column x for the first `whole` vectors; tail(x) is the vector at each later one, zero in
    columns of no value.
    """
    if whole:
        with T.serial(whole) as v:
            store(y, start + v * lanes, values(v * lanes), lanes)
    end = planes.pitch if planes.zero_border else planes.cols
    # The last row has no gap: what is behind it may be another image.
    limit = (
        planes.cols if end == planes.cols or planes.rows == 1 else T.Select(row == planes.rows - 1, planes.cols, end)
    )
    for x in range(whole * lanes, limit if isinstance(limit, int) else end, lanes):
        value = tail(x) if x < planes.cols else constant(0.0, lanes)
        store(y, start + x, value, lanes, lanes if x + lanes <= planes.cols else limit - x)
