"""The CPU kernel for a single token: a block-sparse matrix times a vector.

    y[r] = clamp(f(bias[r] + sum over the kept columns c of row group r // height of W[r, c] * x[c] + residual[r]))

The rows of a group are the lanes of its vectors, so every kept weight is read once, in order: what bounds a layer of
one token is the memory that its weights take.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.functions import apply
from pruneaug.kernels.tiles import Tile
from pruneaug.kernels.vectors import clip, prim_func

_CHAINS = 8  # accumulators that hide the latency of a multiply-add
_ARRAYS = ["float32"] * 3 + ["int32"] * 2 + ["float32", "int32", "float32", "float32"]


@cache
def gemv(height: int, lanes: int, activation: str, residual: bool) -> Any:
    """TIR of the kernel for groups of `height` rows: a power of two, or a multiple of `lanes`.

    Arguments of the compiled function: x float32 [columns of the matrix]; residual float32 [rows] (not read unless
    `residual`); weight float32 [columns * height]; offset int32 [columns]; indptr int32 [row_groups + 1]; bias float32
    [row_groups * height]; split int32 [splits + 1]; bounds float32 [2]; y float32 [at least row_groups * height].
    """
    width = min(height, lanes)
    vectors = height // width
    chains = max(1, _CHAINS // vectors)

    def body(x: Any, r: Any, weight: Any, offset: Any, indptr: Any, bias: Any, split: Any, bounds: Any, y: Any) -> None:
        def run(start: Any) -> Any:
            return start if width == 1 else T.ramp(start, 1, width)

        def wide(value: Any) -> Any:
            return value if width == 1 else T.broadcast(value, width)

        def add_column(acc: Tile, chain: int, column: Any) -> None:
            scalar = T.bind(wide(x[offset[column]]))
            for vector in range(vectors):
                values = weight[run(column * height + vector * width)]
                acc[chain, vector] = acc[chain, vector] + scalar * values

        with T.parallel(split.shape[0] - 1) as part, T.serial(split[part + 1] - split[part]) as g, T.sblock("group"):
            T.reads()
            T.writes()
            group = T.bind(split[part] + g)
            first = T.bind(indptr[group])
            count = T.bind(indptr[group + 1] - first)
            acc = Tile(chains, vectors, width)
            for vector in range(vectors):
                acc[0, vector] = bias[run(group * height + vector * width)]
                for chain in range(1, chains):
                    acc[chain, vector] = wide(T.float32(0))
            with T.serial(count // chains) as c:
                for chain in range(chains):
                    add_column(acc, chain, first + c * chains + chain)
            with T.serial(count % chains) as c:
                add_column(acc, 0, first + count - 1 - c)
            for vector in range(vectors):
                value = acc[0, vector]
                for chain in range(1, chains):
                    value = value + acc[chain, vector]
                out = group * height + vector * width
                if residual:
                    value = value + r[run(out)]
                if activation != "none":
                    value = apply(activation, value, width)
                T.buffer_store(y, clip(value, bounds, width), [run(out)])

    return prim_func(_ARRAYS, body)
