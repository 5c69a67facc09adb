"""The CPU kernel with rows as lanes: the product of `pruneaug.kernels.spmm`, otherwise cut.

There, lanes are positions, and an image of 7x7 leaves a quarter of them empty. Here they are rows of the matrix, and
the positions of a tile are scalars: a tile fits the rows of an image exactly, an input with a stride is read where it
lies, and a multiply-add takes its scalar from memory. In return each tile is transposed in registers before it is
stored, and a group has as many rows as a vector has lanes, so that only tall blocks and dense layers are fast.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.functions import apply
from pruneaug.kernels.planes import Planes
from pruneaug.kernels.tiles import Tile
from pruneaug.kernels.variants import tile_shape
from pruneaug.kernels.vectors import clip, constant, fill, load, opaque, prefetch, prim_func, store, transposed

OFFSETS_AHEAD = 8
"""Columns whose inputs are asked for before they are needed: `offset` has so many values behind its last one."""

_AHEAD = 64  # columns, about 200 ns of work
_PANEL = 160 * 1024  # weights of a group: 640 KB, which leave the second cache some room
_ARRAYS = ["float32"] * 3 + ["int32"] * 2 + ["float32", "int32", "float32", "int32", "float32"]


@dataclass(frozen=True, slots=True)
class ImageTiles:
    """How tiles cover an image, and what lies between positions: all that a kernel is made for.

    A tile is `rows` x `cols` positions of an image of `image_rows` x `image_cols`; its last tile in each direction is
    shorter, or moved back to the image's edge. Output rows are `y_pitch` apart; the input of a position's neighbour
    below or to the right is `x_row` or `x_col` values behind its own.
    """

    rows: int
    cols: int
    image_rows: int
    image_cols: int
    y_pitch: int
    x_row: int
    x_col: int

    @property
    def down(self) -> int:
        """Tiles of a column of them."""
        return -(-self.image_rows // self.rows)

    @property
    def across(self) -> int:
        """Tiles of a row of them."""
        return -(-self.image_cols // self.cols)


def image_tiles(y: Planes, positions: int, x_row: int, x_col: int, lanes: int) -> ImageTiles:
    """Tiles of at most `positions` positions for an output, and where its input lies."""
    rows, cols = tile_shape((y.rows, y.cols), positions, lanes)
    return ImageTiles(rows, cols, y.rows, y.cols, y.pitch, x_row, x_col)


@cache
def row_spmm(height: int, tiles: ImageTiles, lanes: int, activation: str, residual: bool, border: bool) -> Any:
    """TIR of the kernel for groups of `height` rows, a multiple of `lanes`.

    Arguments of the compiled function, in order:
        x float32 [x_len]; residual float32, laid out as y (not read unless `residual`);
        weight float32 [columns * height]; offset int32 [columns + OFFSETS_AHEAD]; indptr int32 [row_groups + 1];
        bias float32 [row_groups * height]; split int32 [splits + 1], the row groups at which the work is divided;
        bounds float32 [2], the clamp; sizes int32 [7]: images, x_image_stride, y_image_stride, y_channel_stride,
        y_lead, splits, bands of tile rows that are tasks of their own;
        y float32 [at least row_groups * height * y_channel_stride].

    With `border` all of an image but its values is zero in y.
    """
    vectors = height // lanes
    gap = tiles.y_pitch - tiles.image_cols if border else 0
    # The last tile of an image is shorter; that of each of several rows is moved back to the row's end instead.
    last_rows = tiles.image_rows % tiles.rows
    last_cols = tiles.image_cols % tiles.cols if tiles.image_rows == 1 else 0

    def body(
        x: Any, r: Any, weight: Any, offset: Any, indptr: Any, bias: Any, split: Any, bounds: Any, sizes: Any, y: Any
    ) -> None:
        images, x_image, y_image, y_channel, lead, splits, bands = (sizes[i] for i in range(7))

        def tile(group: Any, image: Any, row: Any, col: Any, fetch: Any, step: Any, rows: int, cols: int) -> None:
            """The rows of one group at a tile of `rows` x `cols` positions.

            Meanwhile weights from `fetch` are asked for, `step` / 256 of them for each column.
            """
            first, stride = opaque(indptr[group]), opaque(y_channel)
            x_base = opaque(image * x_image + row * tiles.x_row + col * tiles.x_col)
            y_base = opaque(image * y_image + lead + row * tiles.y_pitch + col)
            at = [(i, j) for i in range(rows) for j in range(cols)]
            acc = Tile(len(at), vectors, lanes)
            for vector in range(vectors):
                start = T.bind(load(bias, group * height + vector * lanes, lanes))
                for position in range(len(at)):
                    acc[position, vector] = start
            with T.serial(indptr[group + 1] - first) as c:
                column = opaque(first + c)
                source = opaque(x_base + offset[column])
                # With one vector of rows the loads are as many as the multiply-adds, and leave no time for more.
                if vectors > 1:
                    later = opaque(x_base + offset[column + OFFSETS_AHEAD])
                    for i in range(rows):
                        prefetch(x, later + i * tiles.x_row)
                for vector in range(vectors):
                    prefetch(weight, fetch + T.shift_right(c * step, 8) + vector * lanes)
                acc.multiply_add(
                    lambda p: x[source + (at[p][0] * tiles.x_row + at[p][1] * tiles.x_col)],
                    lambda vector: load(weight, column * height + vector * lanes, lanes),
                    len(at),
                )
            # As many rows of the image as fit into a vector with the gaps between them are stored at once.
            together = max(1, lanes // tiles.y_pitch)
            for top in range(0, rows, together):
                count = min(together, rows - top)
                for vector in range(vectors):
                    out = opaque((group * height + vector * lanes) * stride + y_base + top * tiles.y_pitch)
                    _store(acc, vector, top, count, cols, out, stride, col)

        def _store(acc: Tile, vector: int, top: int, count: int, cols: int, out: Any, stride: Any, col: Any) -> None:
            lane_of = [[i * tiles.y_pitch + j for j in range(cols)] for i in range(count)]
            columns = [constant(0.0, lanes)] * lanes
            for i, row_lanes in enumerate(lane_of):
                for j, lane in enumerate(row_lanes):
                    columns[lane] = acc[(top + i) * cols + j, vector]
            used = lane_of[-1][-1] + 1
            inside = {lane for row_lanes in lane_of for lane in row_lanes}
            # The gap behind the tile, of an image's last column of tiles.
            width = min(lanes, used + gap)
            end = used if width == used else T.Select(col == tiles.image_cols - cols, width, used)
            for row, value in enumerate(transposed(columns)):
                to = opaque(out + row * stride)
                if residual:
                    value = value + load(r, to, lanes, used)
                if activation != "none":
                    value = apply(activation, value, lanes)
                value = T.bind(clip(value, bounds, lanes))
                if len(inside) < lanes:
                    zeroed = [lane if lane in inside else lanes + lane for lane in range(lanes)]
                    value = T.Shuffle([value, constant(0.0, lanes)], zeroed)
                store(y, to, value, lanes, end)
                if used + gap > width:
                    with T.If(col == tiles.image_cols - cols), T.Then():
                        for start in range(width, used + gap, lanes):
                            store(y, to + start, constant(0.0, lanes), lanes, used + gap - start)

        def clear(group: Any, image: Any) -> None:
            """Zeros before the first and behind the last position of the group's rows."""
            end = T.bind(T.Select(image == images - 1, y_channel - image * y_image, y_image))
            behind = (tiles.image_rows - 1) * tiles.y_pitch + tiles.image_cols
            with T.serial(height) as row:
                base = opaque((group * height + row) * y_channel + image * y_image)
                fill(y, base, lead // lanes, lanes)
                # `lead` is a whole number of vectors.
                whole = -(-behind // lanes) * lanes
                if whole > behind:
                    store(y, base + lead + behind, constant(0.0, lanes), lanes, whole - behind)
                fill(y, base + lead + whole, (end - lead - whole) // lanes, lanes)

        with T.parallel(splits * bands) as task, T.sblock("task"):
            T.reads()
            T.writes()
            part, band = T.bind(task // bands), T.bind(task % bands)
            units = T.bind(images * tiles.down)
            start, stop = T.bind(band * units // bands), T.bind((band + 1) * units // bands)
            with T.serial(split[part + 1] - split[part]) as g, T.sblock("group"):
                T.reads()
                T.writes()
                group = opaque(split[part] + g)
                columns = opaque(indptr[group + 1] - indptr[group])
                # While one group is computed the weights of the next come from memory, a share with each tile. Those of
                # groups too large for that come just before they are needed.
                small = columns * height <= _PANEL
                step = opaque(T.Select(small, 256 * height // T.max(1, (stop - start) * tiles.across), 256 * height))
                with T.serial(stop - start) as u, T.serial(tiles.across) as a, T.sblock("tile"):
                    T.reads()
                    T.writes()
                    unit = opaque(start + u)
                    image, index = opaque(unit // tiles.down), opaque(unit % tiles.down)
                    if border:
                        with T.If(index == 0), T.Then(), T.If(a == 0), T.Then():
                            clear(group, image)
                    most_col = tiles.image_cols - (last_cols or tiles.cols)
                    col = opaque(T.min(a * tiles.cols, most_col))
                    next_group = indptr[group + 1] * height + T.shift_right((u * tiles.across + a) * columns * step, 8)
                    fetch = opaque(T.Select(small, next_group, (indptr[group] + _AHEAD) * height))
                    part_of = functools.partial(tile, group, image, index * tiles.rows, col, fetch, step)
                    last = (last_rows or tiles.rows, last_cols or tiles.cols)
                    if last == (tiles.rows, tiles.cols):
                        part_of(*last)
                    else:
                        is_last = a == tiles.across - 1 if last_cols else index == tiles.down - 1
                        with T.If(is_last):
                            with T.Then():
                                part_of(*last)
                            with T.Else():
                                part_of(tiles.rows, tiles.cols)

    return prim_func(_ARRAYS, body)
