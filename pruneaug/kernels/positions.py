"""The loops of kernels whose lanes are positions: over parts of the weights, runs, tiles of positions, row groups."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from tvm.script import tirx as T

from pruneaug.kernels.vectors import fill, opaque


class Runs(NamedTuple):
    """Runs of positions that lie in x and y alike, and the parts of the weight matrix: a kernel's array `sizes`."""

    images: Any
    positions: Any  # of an image: whole tiles and the tail
    x_image: Any  # from an image of x to the next
    y_image: Any
    y_channel: Any
    lead: Any  # positions of y before an image's first
    splits: Any


def read_runs(sizes: Any) -> Runs:
    """Those in a kernel's array, whose first values they are."""
    return Runs(*(sizes[i] for i in range(len(Runs._fields))))


def each_row_group(
    sizes: Runs,
    split: Any,
    vectors: int,
    tail: int,
    lanes: int,
    row_group: Callable[[Any, Any, Any, int], None],
    frame: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """row_group(group, image, start, width) for every group of rows at every tile: `width` vectors from `start`.

    Tiles have `vectors` vectors, and the last one of an image has `tail`, if that is not 0. A task lies in `frame`.
    """

    def row_groups(part: Any, image: Any, start: Any, width: int) -> None:
        with T.serial(split[part + 1] - split[part]) as g, T.sblock("group"):
            T.reads()
            T.writes()
            row_group(opaque(split[part] + g), image, start, width)

    # Parts are the outermost: where they are as many as threads, each has its own weights, and as much to do.
    tile = vectors * lanes
    whole = sizes.positions // tile
    tiles = whole + (1 if tail else 0)
    with T.parallel(sizes.splits * sizes.images * tiles) as task, T.sblock("task"):
        T.reads()
        T.writes()
        part = opaque(task // (sizes.images * tiles))
        image = opaque(task // tiles % sizes.images)
        index = opaque(task % tiles)
        start = opaque(index * tile)
        with frame():
            if not tail:
                row_groups(part, image, start, vectors)
            else:
                with T.If(index < whole):
                    with T.Then():
                        row_groups(part, image, start, vectors)
                    with T.Else():
                        row_groups(part, image, start, tail)


def clear_border(
    y: Any, sizes: Runs, first: Any, count: int, stride: Any, image: Any, start: Any, lanes: int, value: Any = 0.0
) -> None:
    """Fill what lies around an image in the `count` channels from `first` on, `stride` apart: with its first tile."""
    with T.If(start == 0), T.Then(), T.serial(count) as channel:
        base = opaque((first + channel) * stride + image * sizes.y_image)
        fill(y, base, sizes.lead // lanes, lanes, value)
        # Behind the last image, up to the next channel.
        end = T.Select(image == sizes.images - 1, stride - image * sizes.y_image, sizes.y_image)
        fill(y, base + sizes.lead + sizes.positions, (end - sizes.lead - sizes.positions) // lanes, lanes, value)
