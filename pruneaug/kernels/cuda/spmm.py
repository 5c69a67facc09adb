"""The CUDA kernel: tokens times a block-sparse weight matrix on tensor cores, generated as TIR.

    Y[m, n] = clamp(f(bias[n] + sum over the kept columns k of n's row group of X[m, k] * W[n, k] + residual[m, n]))

A thread block computes a tile of tokens x the rows of one group. For every tile of the group's packed weights it copies
these, and the columns of X that belong to them, to shared memory; several tiles ahead, by asynchronous copies. So one
kernel serves every pattern and sparsity: removed blocks are in no tile. There are two layouts of X and Y:

    ROWS      X [tokens, K], Y [tokens, N]. Chunks of at least 16 bytes of a token are copied at once. Tokens are the
              rows of the mma, so that a lane stores outputs of one token that follow each other.
    COLUMNS   X [K, tokens], Y [N, tokens]. 16 bytes are tokens of one column, so chunks of any width do, single columns
              too (vectors of G x 1 weights). Outputs are the rows of the mma.

A convolution is the same product in layout ROWS: its tokens are output positions, and its columns are read from images
(see `images`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder.ir import prim_func as prim_func_frame

from pruneaug.kernels.cuda import fragments as gpu
from pruneaug.kernels.cuda.epilogue import store_columns, store_rows
from pruneaug.kernels.cuda.formats import PIECE, place
from pruneaug.kernels.cuda.images import copy_images, gather_images, tile_positions
from pruneaug.kernels.cuda.shapes import COLUMNS, ROWS, ImageScalars, Scalars, Shape
from pruneaug.kernels.cuda.variants import WARP, CudaVariant


class Place(NamedTuple):
    """Where a thread is: its lane and its warp's part of the tile."""

    thread: Any
    lane: Any
    token_warp: Any
    output_warp: Any


@cache
def cuda_spmm(shape: Shape) -> Any:
    """TIR of the kernel for `shape`.

    Arguments of the compiled function, in order:
        x [x_len] of the format; residual, laid out as y (only if `residual`);
        weight uint32 [...], offset int32 [tiles * depth / chunk], indptr int32 [row groups + 1], as packed: an offset
        is that of a chunk's first column in x; bias float32 [row groups * outputs of a tile];
        the numbers of `Scalars`, int32, but float32 for the clamp;
        y [y_len] of the format.
    With `image` there is tap int32 [tiles * depth / chunk * 4] in place of offset, the numbers of a `Tap` for each
    chunk, and the numbers are those of `ImageScalars`.

    x, residual and y start at a multiple of 16 bytes and have rows of a multiple of 16 bytes; what is behind the last
    value of a row of y may be written. A residual must not overlap y.
    """
    form, variant = shape.form, shape.variant
    with IRBuilder() as builder, prim_func_frame():
        T.func_name("kernel")
        T.func_attr({"tirx.noalias": True})
        columns = "tap" if shape.image else "offset"
        names = ["x", *(["residual"] if shape.residual else []), "weight", columns, "indptr", "bias"]
        dtypes = {"weight": "uint32", columns: "int32", "indptr": "int32", "bias": "float32"}
        handles = {name: T.arg(name, T.handle()) for name in names}
        numbers = ImageScalars if shape.image else Scalars
        scalars = numbers(
            *(T.arg(name, T.float32() if name in ("low", "high") else T.int32()) for name in numbers._fields)
        )
        handles["y"] = T.arg("y", T.handle())
        arrays = {}
        for name, handle in handles.items():
            array = T.match_buffer(handle, (T.int32(),), dtypes.get(name, form.dtype))
            IRBuilder.name(name, array)  # in the source
            arrays[name] = array
        T.device_entry()
        tile, group = T.cta_id(
            [
                (scalars.tokens + variant.tokens - 1) // variant.tokens,
                (scalars.outputs + variant.outputs - 1) // variant.outputs,
            ]
        )
        _block(shape, arrays, scalars, tile, group, T.thread_id([variant.threads]))
    return builder.get()


def _block(
    shape: Shape, arrays: dict[str, Any], scalars: Scalars | ImageScalars, tile: Any, group: Any, thread: Any
) -> None:
    """What a thread block does."""
    variant = shape.variant
    shared = T.alloc_buffer((variant.shared_bytes,), "uint8", scope="shared.dyn", align=128)
    warp = T.bind(thread // WARP)
    at = Place(thread, T.bind(thread % WARP), T.bind(warp % variant.token_warps), T.bind(warp // variant.token_warps))
    first_token, first_tile = T.bind(tile * variant.tokens), T.bind(arrays["indptr"][group])
    count = T.bind(arrays["indptr"][group + 1] - first_tile)
    sums = gpu.registers(variant.warp_tokens * variant.warp_outputs // WARP, "float32")
    for i in range(variant.warp_tokens * variant.warp_outputs // WARP):
        T.buffer_store(sums, T.float32(0), [i])

    stage_bytes = variant.shared_bytes // variant.stages
    x_bytes = variant.tokens * variant.row_bytes
    load_x = _x_loader(shape, arrays, scalars, shared, first_token, thread)

    def load(step: Any, slot: Any) -> None:
        base = T.bind(slot * stage_bytes)
        packed = T.bind(first_tile + step)
        load_x(base, packed)
        _load_weight(variant, arrays["weight"], shared, base + x_bytes, packed, thread)

    for step in range(variant.stages - 1):
        with T.If(count > step), T.Then():
            load(step, step)
        gpu.commit_copies()
    sizes = (variant.warp_tokens // 4, variant.warp_outputs // 4)
    fragments = [gpu.registers(size) for size in sizes * (2 if shape.form.splits else 1)]
    with T.serial(count) as step:
        gpu.wait_for_copies(variant.stages - 2)
        # All copies of this step have arrived, and no warp still reads the stage that is overwritten next.
        T.evaluate(T.cuda.cta_sync())
        ahead = T.bind(step + variant.stages - 1)
        with T.If(ahead < count), T.Then():
            load(ahead, ahead % variant.stages)
        gpu.commit_copies()
        base = T.bind(step % variant.stages * stage_bytes)
        for k in range(variant.row_bytes // 32):
            _multiply(shape, shared, base, base + x_bytes, k, at, fragments, sums)
    store = store_rows if shape.layout == ROWS else store_columns
    token = T.bind(first_token + at.token_warp * variant.warp_tokens)
    output = T.bind(group * variant.outputs + at.output_warp * variant.warp_outputs)
    store(shape.form, variant, shape.activation, sums, arrays, scalars, token, output, at.lane)


def _x_loader(
    shape: Shape, arrays: dict[str, Any], scalars: Any, shared: Any, token: Any, thread: Any
) -> Callable[[Any, Any], None]:
    """f(base, packed), which loads the part of X for the tile `packed` of the weights to byte `base`."""
    if shape.image:
        positions = tile_positions(shape.variant, scalars, token, thread)
        load = gather_images if shape.gathers else copy_images
        return lambda base, packed: load(
            shape, arrays["x"], arrays["tap"], scalars, positions, shared, base, packed, thread
        )
    load_x = _gather_rows if shape.gathers else _load_rows if shape.layout == ROWS else _load_columns
    return lambda base, packed: load_x(
        shape, arrays["x"], arrays["offset"], scalars, shared, base, packed, token, thread
    )


def _load_weight(variant: CudaVariant, weight: Any, shared: Any, base: Any, packed: Any, thread: Any) -> None:
    """A tile of weights, which lies in memory as it will lie there."""
    pieces = variant.outputs * variant.pieces
    words = PIECE // 4
    gpu.each(
        pieces,
        thread,
        variant.threads,
        lambda i: gpu.copy_async(
            shared, base + i * PIECE, weight.ptr_to([packed * (pieces * words) + i * words]), PIECE
        ),
    )


def _load_rows(
    shape: Shape, x: Any, offset: Any, scalars: Scalars, shared: Any, base: Any, packed: Any, token: Any, thread: Any
) -> None:
    """A tile [tokens, depth] of X [tokens, K]; what is behind its last token or column is zero."""
    form, variant, chunk = shape.form, shape.variant, shape.chunk

    def piece(i: Any) -> None:
        row, q = i // variant.pieces, i % variant.pieces
        column = q * form.per_piece
        entry = packed * (variant.columns(form) // chunk) + column // chunk
        source = T.bind(offset[entry] + column % chunk)
        inside = T.min((scalars.x_limit - source) * form.size, PIECE)  # bytes
        size = T.bind(T.Select(token + row < scalars.tokens, T.max(inside, 0), 0))
        start = T.Select(size > 0, (token + row) * scalars.x_stride + source, 0)
        to = base + row * variant.row_bytes + place(row, q, variant.pieces) * PIECE
        gpu.copy_async(shared, to, x.ptr_to([start]), size)

    gpu.each(variant.tokens * variant.pieces, thread, variant.threads, piece)


def _gather_rows(
    shape: Shape, x: Any, offset: Any, scalars: Scalars, shared: Any, base: Any, packed: Any, token: Any, thread: Any
) -> None:
    """`_load_rows` of columns that do not follow each other: value by value, through a register."""
    form, variant, chunk = shape.form, shape.variant, shape.chunk
    depth = variant.columns(form)
    kind = f"b{8 * form.size}"
    value = gpu.registers(1, f"uint{8 * form.size}")

    def one(i: Any) -> None:
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


def _load_columns(
    shape: Shape, x: Any, offset: Any, scalars: Scalars, shared: Any, base: Any, packed: Any, token: Any, thread: Any
) -> None:
    """A tile [depth, tokens] of X [K, tokens]; what is behind its last token or column is zero."""
    form, variant, chunk = shape.form, shape.variant, shape.chunk
    depth, pieces = variant.columns(form), variant.tokens // form.per_piece

    def piece(i: Any) -> None:
        column, q = i // pieces, i % pieces
        entry = packed * (depth // chunk) + column // chunk
        source = T.bind(offset[entry] + column % chunk * scalars.x_stride)
        position = T.bind(token + q * form.per_piece)
        inside = T.min((scalars.tokens - position) * form.size, PIECE)  # bytes
        size = T.bind(T.Select(source < scalars.x_limit, T.max(inside, 0), 0))
        start = T.Select(size > 0, source + position, 0)
        to = base + column * (variant.tokens * form.size) + place(column, q, pieces) * PIECE
        gpu.copy_async(shared, to, x.ptr_to([start]), size)

    gpu.each(depth * pieces, thread, variant.threads, piece)


def _multiply(
    shape: Shape, shared: Any, x: Any, weight: Any, k: int, at: Place, fragments: list[Any], sums: Any
) -> None:
    """32 bytes of columns of the tiles at bytes `x` and `weight`: a warp's fragments, and all products of them.

    `fragments` are registers for tokens and outputs, and as many again where each value is split into two.
    """
    form, variant = shape.form, shape.variant
    tokens, outputs, *high = fragments
    lane, eight = at.lane, at.lane // 8

    def rows_of(base: Any, first: Any, row: Any, half: Any) -> Any:
        """The address of 16 bytes of a row: those at 32 * k, or with `half` the next."""
        # Rows of 16 lie in the same order, wherever they begin: the order is that of the first 16.
        return base + (first + row) * variant.row_bytes + place(row, 2 * k + half, variant.pieces) * PIECE

    # As the left side of an mma, four matrices of 8 rows x 16 bytes: first all rows, then their next 16 bytes. As the
    # right side the rows are columns: first all bytes of 8 columns, then the next 8 columns.
    left, right = (lane % 16, lane // 16), (lane % 8 + lane // 16 * 8, eight % 2)
    first_token, first_output = at.token_warp * variant.warp_tokens, at.output_warp * variant.warp_outputs
    x_order, weight_order = (left, right) if shape.layout == ROWS else (right, left)
    for i in range(variant.warp_outputs // 16):
        gpu.load_fragments(shared, rows_of(weight, first_output + 16 * i, *weight_order), outputs, 4 * i)
    for i in range(variant.warp_tokens // 16):
        if shape.layout == ROWS:
            gpu.load_fragments(shared, rows_of(x, first_token + 16 * i, *x_order), tokens, 4 * i)
        else:
            pieces = variant.tokens // form.per_piece
            piece = (first_token + 16 * i) // form.per_piece + lane // 16
            row = k * form.depth + lane % 16
            to = x + row * (variant.tokens * form.size) + place(lane % 16, piece, pieces) * PIECE
            gpu.load_fragments(shared, to, tokens, 4 * i, transposed=True)
    products = [(tokens, outputs)]
    if form.splits:
        gpu.split_to_tf32(tokens, high[0], variant.warp_tokens // 4)
        gpu.split_to_tf32(outputs, high[1], variant.warp_outputs // 4)
        products = [(tokens, high[1]), (high[0], outputs), (high[0], high[1])]  # small ones first
    elif form.size == 4:
        gpu.round_to_tf32(tokens, variant.warp_tokens // 4)
    rows, columns = variant.warp_tokens // 16, variant.warp_outputs // 8
    if shape.layout == COLUMNS:
        rows, columns = variant.warp_outputs // 16, variant.warp_tokens // 8
    for token_words, output_words in products:
        left_side, right_side = (token_words, output_words) if shape.layout == ROWS else (output_words, token_words)
        for row in range(rows):
            for column in range(columns):
                gpu.multiply(form, sums, 4 * (row * columns + column), left_side, 4 * row, right_side, 2 * column)
