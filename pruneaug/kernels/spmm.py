# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# The TVMScript decorator is untyped, and it reads the annotations of what it decorates as its own language.
"""The CPU kernel: a block-sparse matrix times a dense one, generated as TVM TIR.

    Y[r, p] = clamp(bias[r] + sum over the kept columns c of row group r // height of W[r, c] * X[offset(c) + p])

The weight matrix is packed in groups of `height` rows: for every group, the columns that any of its rows needs (see
`pruneaug.sparsity.packing`). So one compiled kernel serves every pattern, shape and sparsity; a pattern decides only
how many columns a group keeps. `p` runs over flat positions, contiguous in X and Y: output pixels of a convolution,
tokens of a linear layer. The accumulators of a tile, height x vectors registers of `lanes` float32 values, never leave
the register file.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


def spmm(height: int, vectors: int, lanes: int) -> Any:
    """TIR of the kernel for tiles of `height` rows x (`vectors` * `lanes`) positions.

    Arguments of the compiled function, in order: x float32 [x_len]; weight float32 [columns * height]; offset int32
    [columns]; indptr int32 [row_groups + 1]; bias float32 [row_groups * height]; split int32 [splits + 1], the row
    groups at which the work is divided; y float32 [batch * row_groups * height * y_row_stride]; then int32 batch,
    positions, x_batch_stride, y_row_stride, and float32 low, high. A row of y must hold max(positions, tile) values,
    and so must what x has behind every offset. The last tile is moved back to end at `positions`, so it recomputes
    rather than overruns.
    """
    tile = vectors * lanes
    # Row o * by_row + n * by_vector and vector o * by_vector + n * by_row of a tile meet in accumulator (o, n). What
    # the inner loop goes over stays in registers beside the accumulators: so it is the fewer, rows or vectors.
    by_row, by_vector = (1, 0) if height >= vectors else (0, 1)
    outer, inner = max(height, vectors), min(height, vectors)

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.handle,
        weight: T.handle,
        offset: T.handle,
        indptr: T.handle,
        bias: T.handle,
        split: T.handle,
        y: T.handle,
        batch: T.int32,
        positions: T.int32,
        x_batch_stride: T.int32,
        y_row_stride: T.int32,
        low: T.float32,
        high: T.float32,
    ):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        x_len = T.int32()
        w_len = T.int32()
        columns = T.int32()
        groups_plus_1 = T.int32()
        rows = T.int32()
        splits_plus_1 = T.int32()
        y_len = T.int32()
        X = T.match_buffer(x, (x_len,), "float32")
        W = T.match_buffer(weight, (w_len,), "float32")
        Offset = T.match_buffer(offset, (columns,), "int32")
        Indptr = T.match_buffer(indptr, (groups_plus_1,), "int32")
        Bias = T.match_buffer(bias, (rows,), "float32")
        Split = T.match_buffer(split, (splits_plus_1,), "int32")
        Y = T.match_buffer(y, (y_len,), "float32")
        for task in T.parallel(batch * T.ceildiv(positions, tile) * (splits_plus_1 - 1)):
            with T.sblock("task"):
                T.reads()
                T.writes()
                part = task % (splits_plus_1 - 1)
                image = task // (splits_plus_1 - 1) // T.ceildiv(positions, tile)
                start = T.max(
                    T.min(task // (splits_plus_1 - 1) % T.ceildiv(positions, tile) * tile, positions - tile), 0
                )
                x_base = image * x_batch_stride + start
                for g in T.serial(Split[part + 1] - Split[part]):
                    with T.sblock("group"):
                        T.reads()
                        T.writes()
                        r = Split[part] + g
                        acc = T.sblock_alloc_buffer((height * vectors * lanes,), "float32", scope="local")
                        for o in T.unroll(outer):
                            for n in T.unroll(inner):
                                acc[T.ramp((o * inner + n) * lanes, 1, lanes)] = T.broadcast(
                                    Bias[r * height + o * by_row + n * by_vector], lanes
                                )
                        for c in T.serial(Indptr[r + 1] - Indptr[r]):
                            for o in T.unroll(outer):
                                for n in T.unroll(inner):
                                    acc[T.ramp((o * inner + n) * lanes, 1, lanes)] = (
                                        acc[T.ramp((o * inner + n) * lanes, 1, lanes)]
                                        + T.broadcast(W[(Indptr[r] + c) * height + o * by_row + n * by_vector], lanes)
                                        * X[
                                            T.ramp(
                                                x_base + Offset[Indptr[r] + c] + (o * by_vector + n * by_row) * lanes,
                                                1,
                                                lanes,
                                            )
                                        ]
                                    )
                        for o in T.unroll(outer):
                            for n in T.unroll(inner):
                                # The order of the arguments keeps NaN: max(low, NaN) is NaN, max(NaN, low) is low.
                                Y[
                                    T.ramp(
                                        ((image * (groups_plus_1 - 1) + r) * height + o * by_row + n * by_vector)
                                        * y_row_stride
                                        + start
                                        + (o * by_vector + n * by_row) * lanes,
                                        1,
                                        lanes,
                                    )
                                ] = T.min(
                                    T.broadcast(high, lanes),
                                    T.max(T.broadcast(low, lanes), acc[T.ramp((o * inner + n) * lanes, 1, lanes)]),
                                )

    return kernel
