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
(see `images`). Products are those of warps, by `mma`, or on Hopper of warpgroups (see `warpgroups`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder.ir import prim_func as prim_func_frame

from pruneaug.kernels.cuda import fragments as gpu
from pruneaug.kernels.cuda import warpgroups
from pruneaug.kernels.cuda.epilogue import store_columns, store_rows
from pruneaug.kernels.cuda.formats import PIECE, place
from pruneaug.kernels.cuda.images import image_loader
from pruneaug.kernels.cuda.loads import Loader, linear_loader, load_weight
from pruneaug.kernels.cuda.shapes import COLUMNS, ROWS, ImageScalars, Scalars, Shape
from pruneaug.kernels.cuda.variants import WARP, CudaVariant

_BAND = 2048  # tokens whose tiles follow each other


class Place(NamedTuple):
    """Where a thread is: its lane, and the part of the tile that its warp or warpgroup computes."""

    thread: Any
    lane: Any
    token_part: Any
    output_part: Any


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
        blocks = T.cta_id(
            [
                (scalars.tokens + variant.tokens - 1) // variant.tokens,
                (scalars.outputs + variant.outputs - 1) // variant.outputs,
            ]
        )
        tile, group = _in_bands(variant, scalars, *blocks)
        _block(shape, arrays, scalars, tile, group, T.thread_id([variant.threads]))
    return builder.get()


def _in_bands(variant: CudaVariant, scalars: Scalars | ImageScalars, x: Any, y: Any) -> tuple[Any, Any]:
    """The tile of tokens and the row group of a thread block, by when it starts.

    Blocks start with x running fastest. Those that run at the same time share what they read through the second-level
    cache, and read least if they compute as many tokens as outputs, as 132 blocks of 32768 values do with 2048 tokens.
    The tokens of a band are read from memory once, for all row groups.
    """
    wide = _BAND // variant.tokens
    # Were these the expressions of the grid, TVM would make the host compute them and hand them over.
    tiles = T.bind(T.truncdiv(scalars.tokens - 1, variant.tokens) + 1)
    groups = T.bind(T.truncdiv(scalars.outputs - 1, variant.outputs) + 1)
    number = T.bind(y * tiles + x)
    band = T.bind(T.truncdiv(number, wide * groups))
    within = T.bind(number - band * (wide * groups))
    width = T.bind(T.min(tiles - band * wide, wide))
    group = gpu.opaque(T.truncdiv(within, width))
    return gpu.opaque(band * wide + within - group * width), group


def _block(
    shape: Shape, arrays: dict[str, Any], scalars: Scalars | ImageScalars, tile: Any, group: Any, thread: Any
) -> None:
    """What a thread block does."""
    variant = shape.variant
    # Swizzling of a warpgroup's operands counts from multiples of 1024 bytes.
    shared = T.alloc_buffer((variant.shared_bytes,), "uint8", scope="shared.dyn", align=1024)
    part = T.bind(thread // variant.part_threads)
    at = Place(thread, T.bind(thread % WARP), T.bind(part % variant.token_parts), T.bind(part // variant.token_parts))
    first_token, first_tile = T.bind(tile * variant.tokens), T.bind(arrays["indptr"][group])
    count = T.bind(arrays["indptr"][group + 1] - first_tile)
    sums = gpu.registers(variant.sums, "float32")
    for i in range(variant.sums):
        T.buffer_store(sums, T.float32(0), [i])

    stage_bytes = variant.shared_bytes // variant.stages
    x_bytes = variant.tokens * variant.row_bytes
    loader = _x_loader(shape, arrays, scalars, shared, first_token, thread)
    with T.If(count > 0), T.Then():
        loader.look_up(first_tile)

    def load(step: Any, slot: Any) -> None:
        base = T.bind(slot * stage_bytes)
        packed = T.bind(first_tile + step)
        loader.copy(base, packed)
        load_weight(variant, arrays["weight"], shared, base + x_bytes, packed, thread)
        with T.If(step + 1 < count), T.Then():
            loader.look_up(packed + 1)

    if variant.wgmma:
        warpgroups.multiply_tiles(shape, shared, load, count, at.token_part, at.output_part, sums)
    else:
        _multiply_tiles(shape, shared, load, count, at, sums)
    token = T.bind(first_token + at.token_part * variant.part_tokens)
    output = T.bind(group * variant.outputs + at.output_part * variant.part_outputs)
    rows_of_warp = T.bind(thread % variant.part_threads // WARP * 16)  # the first of its part's
    if shape.layout == ROWS:
        store, token = store_rows, T.bind(token + rows_of_warp)
    else:
        store, output = store_columns, T.bind(output + rows_of_warp)
    store(shape.form, variant, shape.activation, sums, arrays, scalars, token, output, at.lane)


def _x_loader(shape: Shape, arrays: dict[str, Any], scalars: Any, shared: Any, token: Any, thread: Any) -> Loader:
    """The loads of X for tokens from `token`."""
    if shape.image:
        return image_loader(shape, arrays["x"], arrays["tap"], scalars, shared, token, thread)
    return linear_loader(shape, arrays["x"], arrays["offset"], scalars, shared, token, thread)


def _multiply_tiles(
    shape: Shape, shared: Any, load: Callable[[Any, Any], None], count: Any, at: Place, sums: Any
) -> None:
    """Add up the products of `count` tiles by warps; load(step, slot) starts the copies of a tile to a stage."""
    variant = shape.variant
    stage_bytes = variant.shared_bytes // variant.stages
    for step in range(variant.stages - 1):
        with T.If(count > step), T.Then():
            load(step, step)
        gpu.commit_copies()
    sizes = (variant.part_tokens // 4, variant.part_outputs // 4)
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
            _multiply(shape, shared, base, base + variant.tokens * variant.row_bytes, k, at, fragments, sums)


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
    first_token, first_output = at.token_part * variant.part_tokens, at.output_part * variant.part_outputs
    x_order, weight_order = (left, right) if shape.layout == ROWS else (right, left)
    for i in range(variant.part_outputs // 16):
        gpu.load_fragments(shared, rows_of(weight, first_output + 16 * i, *weight_order), outputs, 4 * i)
    for i in range(variant.part_tokens // 16):
        if shape.layout == ROWS:
            gpu.load_fragments(shared, rows_of(x, first_token + 16 * i, *x_order), tokens, 4 * i)
        else:
            piece = (first_token + 16 * i) // form.per_piece + lane // 16
            # Columns of 16 lie in the same order, wherever they begin.
            base = x + k * form.depth * min(64, variant.tokens) * form.size
            gpu.load_fragments(shared, base + gpu.in_strips(shape, lane % 16, piece), tokens, 4 * i, transposed=True)
    products = [(tokens, outputs)]
    if form.splits:
        gpu.split_to_tf32(tokens, high[0], variant.part_tokens // 4)
        gpu.split_to_tf32(outputs, high[1], variant.part_outputs // 4)
        products = [(tokens, high[1]), (high[0], outputs), (high[0], high[1])]  # small ones first
    elif form.size == 4:
        gpu.round_to_tf32(tokens, variant.part_tokens // 4)
    rows, columns = variant.part_tokens // 16, variant.part_outputs // 8
    if shape.layout == COLUMNS:
        rows, columns = variant.part_outputs // 16, variant.part_tokens // 8
    sides = [pair if shape.layout == ROWS else pair[::-1] for pair in products]
    if not form.splits:
        ((left_side, right_side),) = sides
        for row in range(rows):
            for column in range(columns):
                gpu.multiply(form, sums, 4 * (row * columns + column), left_side, 4 * row, right_side, 2 * column)
        return
    # Tensor cores round what they add up towards zero, so its error grows with the columns. An addition of their
    # products to the sums rounds to the nearest.
    part = gpu.registers(4, "float32")
    for row in range(rows):
        for column in range(columns):
            for i in range(4):
                T.buffer_store(part, T.float32(0), [i])
            for left_side, right_side in sides:
                gpu.multiply(form, part, 0, left_side, 4 * row, right_side, 2 * column)
            for i in range(4):
                at_sum = 4 * (row * columns + column) + i
                T.buffer_store(sums, sums[at_sum] + part[i], [at_sum])
