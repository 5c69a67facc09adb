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
from functools import cache
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.lowp.dot import Sums, dot, instructions, round_bfloat16, uint8_words
from pruneaug.kernels.lowp.formats import BFLOAT16, Format
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
    tile = vectors * lanes
    per_plane = form.per_word if rounded else 1  # rows in a plane of y
    planes = height // per_plane
    stored = "int32" if rounded else "float32"

    def body(
        x: Any, weight: Any, offset: Any, indptr: Any, start: Any, scale: Any, shift: Any, split: Any, bounds: Any,
        sizes: Any, inside: Any, y: Any,
    ) -> None:  # fmt: skip
        images, positions, x_image, y_image, y_channel, lead, splits, zero = (sizes[i] for i in range(8))

        def outside() -> Any:
            return T.broadcast(zero if rounded else T.float32(0), lanes)

        def fill(base: Any, count: Any) -> None:
            with T.serial(count) as v:
                store(y, base + v * lanes, outside(), lanes)

        def accumulate(sums: Sums, column: Any, source: Any, width: int) -> None:
            """Rows or vectors, whichever are fewer, stay in registers beside the sums; the others come one by one."""

            def left(row: int) -> Any:
                return T.bind(T.broadcast(weight[column * height + row], lanes))

            def right(vector: int) -> Any:
                return T.bind(load(x, source + vector * lanes, lanes))

            if height >= width:
                values = [right(vector) for vector in range(width)]
                for row in range(height):
                    scalar = left(row)
                    for vector in range(width):
                        sums[row, vector] = dot(form, sums[row, vector], values[vector], scalar, lanes, native)
            else:
                scalars = [left(row) for row in range(height)]
                for vector in range(width):
                    value = right(vector)
                    for row in range(height):
                        sums[row, vector] = dot(form, sums[row, vector], value, scalars[row], lanes, native)

        def result(sums: Sums, row: int, vector: int, index: Any) -> Any:
            value = sums[row, vector]
            if form is not BFLOAT16:
                value = T.Cast(f"float32x{lanes}", value) * T.broadcast(scale[index], lanes)
                value = value + T.broadcast(shift[index], lanes)
            return T.bind(clip(value, bounds, lanes))

        def row_group(group: Any, image: Any, position: Any, width: int) -> None:
            """The rows of one group at `width` vectors of positions."""
            first, stride = opaque(indptr[group]), opaque(y_channel)
            x_base, y_base = opaque(image * x_image + position), opaque(image * y_image + lead + position)
            sums = Sums(height, width, lanes, form.accumulator)
            for row in range(height):
                for vector in range(width):
                    sums[row, vector] = T.broadcast(start[group * height + row], lanes)
            with T.serial(indptr[group + 1] - first) as c:
                column = opaque(first + c)
                accumulate(sums, column, opaque(x_base + offset[column]), width)
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
                        value = T.Select(kept, value, outside())
                    store(y, out + vector * lanes, value, lanes)
            if border:
                with T.If(position == 0), T.Then(), T.serial(planes) as plane:
                    base = opaque((group * planes + plane) * stride + image * y_image)
                    fill(base, lead // lanes)
                    # Behind the last image, up to the next channel.
                    end = T.Select(image == images - 1, stride - image * y_image, y_image)
                    fill(base + lead + positions, (end - lead - positions) // lanes)

        def row_groups(part: Any, image: Any, position: Any, width: int) -> None:
            with T.serial(split[part + 1] - split[part]) as g, T.sblock("group"):
                T.reads()
                T.writes()
                row_group(opaque(split[part] + g), image, position, width)

        # Parts are the outermost: where they are as many as threads, each has its own weights, and as much to do.
        whole = positions // tile
        tiles = whole + (1 if tail else 0)
        with T.parallel(splits * images * tiles) as task, T.sblock("task"):
            T.reads()
            T.writes()
            part = opaque(task // (images * tiles))
            image = opaque(task // tiles % images)
            index = opaque(task % tiles)
            position = opaque(index * tile)
            with instructions(lanes) if native else nullcontext():
                if not tail:
                    row_groups(part, image, position, vectors)
                else:
                    with T.If(index < whole):
                        with T.Then():
                            row_groups(part, image, position, vectors)
                        with T.Else():
                            row_groups(part, image, position, tail)

    arrays = ["int32"] * 4 + [form.accumulator, "float32", "float32", "int32", "float32", "int32", "int32", stored]
    return prim_func(arrays, body)
