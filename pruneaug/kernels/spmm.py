"""The CPU kernel: a block-sparse matrix times a dense one, generated as TVM TIR.

    Y[r, p] = clamp(f(bias[r] + sum over the kept columns c of row group r // height of W[r, c] * X[offset(c) + p]
                      + residual[r, p]))

The weight matrix is packed in groups of `height` rows: for every group, the columns that any of its rows needs (see
`pruneaug.sparsity.packing`). So one compiled kernel serves every pattern, shape and sparsity; a pattern decides only
how many columns a group keeps. `p` runs over the positions of an image, contiguous in X and Y (see
`pruneaug.kernels.planes`): output pixels of a convolution, tokens of a linear layer. The accumulators of a tile,
height x vectors registers of `lanes` float32 values, never leave the register file.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.functions import apply
from pruneaug.kernels.positions import clear_border, each_row_group, read_runs
from pruneaug.kernels.tiles import Tile
from pruneaug.kernels.vectors import clip, constant, load, opaque, prefetch, prim_func, store

_AHEAD = 1024  # weights, about 400 ns of work
_ARRAYS = ["float32"] * 3 + ["int32"] * 2 + ["float32", "int32", "float32", "int32", "float32", "float32"]


@cache
def spmm(
    height: int,
    vectors: int,
    tail: int,
    lanes: int,
    activation: str,
    residual: bool,
    border: bool,
    far: bool = False,
    many: bool = False,
) -> Any:
    """TIR of the kernel for tiles of `height` rows x (`vectors` * `lanes`) positions; the last tile of an image has
    `tail` * `lanes` positions, if that is not 0.

    Arguments of the compiled function, in order:
        x float32 [x_len]; residual float32, laid out as y (not read unless `residual`);
        weight float32 [columns * height]; offset int32 [columns]; indptr int32 [row_groups + 1];
        bias float32 [row_groups * height]; split int32 [splits + 1], the row groups at which the work is divided;
        bounds float32 [2], the clamp; sizes int32 [7]: images, positions of an image (whole tiles and the tail),
        x_image_stride, y_image_stride, y_channel_stride, y_lead, splits;
        inside float32 [positions], 0 where a position lies between two rows, else 1 (not read unless `border`);
        y float32 [at least row_groups * height * y_channel_stride].

    With `border` all of an image but its values is zero in y. With `far` the input of the next tile is asked for while
    one is computed: for inputs larger than the second cache. With `many` weights are asked for before they are needed:
    for more than the first cache holds.
    """
    tile = vectors * lanes

    def body(
        x: Any, r: Any, weight: Any, offset: Any, indptr: Any, bias: Any, split: Any, bounds: Any, sizes: Any,
        inside: Any, y: Any,
    ) -> None:  # fmt: skip
        runs = read_runs(sizes)

        def row_group(group: Any, image: Any, start: Any, width: int) -> None:
            """The rows of one group at `width` vectors of positions from `start`."""
            first, stride = opaque(indptr[group]), opaque(runs.y_channel)
            x_base, y_base = opaque(image * runs.x_image + start), opaque(image * runs.y_image + runs.lead + start)
            # Each group asks for another vector of the next tile, so that a tile's groups ask for all of it.
            ahead = opaque(tile + group % width * lanes) if far else 0
            acc = Tile(height, width, lanes)
            for row in range(height):
                for vector in range(width):
                    acc[row, vector] = T.broadcast(bias[group * height + row], lanes)
            with T.serial(indptr[group + 1] - first) as c:
                column = opaque(first + c)
                source = opaque(x_base + offset[column])
                if many:
                    prefetch(weight, column * height + _AHEAD)
                if far:
                    prefetch(x, source + ahead)
                acc.accumulate(
                    lambda row: weight[column * height + row],
                    lambda vector: load(x, source + vector * lanes, lanes),
                )
            for row in range(height):
                out = opaque((group * height + row) * stride + y_base)
                for vector in range(width):
                    value = acc[row, vector]
                    if residual:
                        value = value + load(r, out + vector * lanes, lanes)
                    if activation != "none":
                        value = apply(activation, value, lanes)
                    value = clip(value, bounds, lanes)
                    if border:
                        kept = load(inside, start + vector * lanes, lanes) > constant(0.0, lanes)
                        value = T.Select(kept, value, constant(0.0, lanes))
                    store(y, out + vector * lanes, value, lanes)
            if border:
                clear_border(y, runs, group * height, height, stride, image, start, lanes)

        each_row_group(runs, split, vectors, tail, lanes, row_group)

    return prim_func(_ARRAYS, body)
