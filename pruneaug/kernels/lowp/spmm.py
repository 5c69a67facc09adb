"""The CPU kernel of words: a block-sparse matrix times a dense one, in bfloat16 or int8.

    sum[r, p] = start[r] + sum over the kept word columns c of row group r // height of W[r, c] . X[offset(c) + p]

where `.` multiplies two words value by value and adds the products. What is stored is

    bfloat16:  Y[r, p] = clamp(sum[r, p])
    int8:      Y[r, p] = clamp(sum[r, p] * scale[r] + shift[r])

as words of `per_word` rows each, or as float32 planes. Words of int8 take the last bits of Y: there, `shift` holds the
2^23 that rounds it. Otherwise it is the kernel of `pruneaug.kernels.spmm`:
groups of `height` rows keep the columns, of a word's width, that any of their rows needs, and `p` runs over positions.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache, partial
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.lowp.dot import dot, instructions, round_bfloat16, uint8_words
from pruneaug.kernels.lowp.formats import BFLOAT16, Format
from pruneaug.kernels.positions import clear_border, each_row_group, read_runs
from pruneaug.kernels.tiles import Tile
from pruneaug.kernels.vectors import clip, load, opaque, prim_func, store


@cache
def word_spmm(
    form: Format, height: int, vectors: int, tail: int, lanes: int, *, rounded: bool, border: bool, native: bool
) -> Any:
    """TIR of the kernel for tiles of `height` rows x (`vectors` * `lanes`) positions; the last tile of an image has
    `tail` * `lanes` positions, if that is not 0.

    Arguments of the compiled function, in order:
        x int32 [x_len], words; weight int32 [columns * height], words; offset int32 [columns];
        indptr int32 [row_groups + 1]; start float32 (bfloat16) or int32 (int8) [row_groups * height];
        scale, shift float32 [row_groups * height] (int8; not read for bfloat16);
        split int32 [splits + 1], the row groups at which the work is divided; bounds float32 [2], the clamp;
        sizes int32 [8]: images, positions of an image (whole tiles and the tail), x_image_stride, y_image_stride,
        y_channel_stride, y_lead, splits, the word of the border;
        inside int32 [positions], 0 where a position lies between two rows, else 1 (not read unless `border`);
        y int32 words [at least row_groups * height / per_word * y_channel_stride] if `rounded` (`height` is a multiple
        of per_word), else float32 [at least row_groups * height * y_channel_stride].

    With `border` all of an image but its values is the border's word in y, or 0.0. `native` takes the CPU's dot-product
    instructions.
    """
    per_plane = form.per_word if rounded else 1  # rows in a plane of y
    planes = height // per_plane
    stored = "int32" if rounded else "float32"

    def body(
        x: Any, weight: Any, offset: Any, indptr: Any, start: Any, scale: Any, shift: Any, split: Any, bounds: Any,
        sizes: Any, inside: Any, y: Any,
    ) -> None:  # fmt: skip
        runs, zero = read_runs(sizes), sizes[7]

        outside = zero if rounded else T.float32(0)

        def add(total: Any, word: Any, values: Any) -> Any:
            return dot(form, total, word, values, lanes, native)

        def result(sums: Tile, row: int, vector: int, index: Any) -> Any:
            value = sums[row, vector]
            if form is not BFLOAT16:
                value = T.Cast(f"float32x{lanes}", value) * T.broadcast(scale[index], lanes)
                value = value + T.broadcast(shift[index], lanes)
            return T.bind(clip(value, bounds, lanes))

        def row_group(group: Any, image: Any, position: Any, width: int) -> None:
            """The rows of one group at `width` vectors of positions."""
            first, stride = opaque(indptr[group]), opaque(runs.y_channel)
            x_base = opaque(image * runs.x_image + position)
            y_base = opaque(image * runs.y_image + runs.lead + position)
            sums = Tile(height, width, lanes, form.accumulator)
            for row in range(height):
                for vector in range(width):
                    sums[row, vector] = T.broadcast(start[group * height + row], lanes)
            with T.serial(indptr[group + 1] - first) as c:
                column = opaque(first + c)
                source = opaque(x_base + offset[column])
                sums.accumulate(
                    lambda row: weight[column * height + row],
                    lambda vector: load(x, source + vector * lanes, lanes),
                    add,
                )
            for plane in range(planes):
                out = opaque((group * planes + plane) * stride + y_base)
                for vector in range(width):
                    rows = range(plane * per_plane, (plane + 1) * per_plane)
                    values = [result(sums, row, vector, group * height + row) for row in rows]
                    if not rounded:
                        value = values[0]
                    elif form is BFLOAT16:
                        value = round_bfloat16(values, lanes, native)
                    else:
                        value = uint8_words(values, lanes)
                    if border:
                        kept = load(inside, position + vector * lanes, lanes) != T.broadcast(T.int32(0), lanes)
                        value = T.Select(kept, value, T.broadcast(outside, lanes))
                    store(y, out + vector * lanes, value, lanes)
            if border:
                clear_border(y, runs, group * planes, planes, stride, image, position, lanes, outside)

        frame = partial(instructions, lanes) if native else nullcontext
        each_row_group(runs, split, vectors, tail, lanes, row_group, frame)

    arrays = ["int32"] * 4 + [form.accumulator, "float32", "float32", "int32", "float32", "int32", "int32", stored]
    return prim_func(arrays, body)
