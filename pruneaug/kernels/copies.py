"""Copies of activations: what a convolution with a stride reads, a network's inputs and outputs, joined channels."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from tvm.script import tirx as T

from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.planes import Planes
from pruneaug.kernels.vectors import (
    bands_of,
    clear_around,
    constant,
    every_second,
    kept,
    load,
    prim_func,
    store,
    store_row,
    tasks,
    transposed,
)

Plain = tuple[int, int, int, int]  # images, channels, rows, cols of a tensor without gaps
Phase = tuple[int, int]


def phase_copy(
    source: Planes | Plain, out: Planes, phases: tuple[Phase, ...], stride: tuple[int, int], lanes: int
) -> KernelCall:
    """Every stride-th row and column of an image, from several offsets ("phases"), each in channels of its own.

    out(n, f * C + c, y, x) = source(n, c, y * stride_y + phases[f].y, x * stride_x + phases[f].x), or 0 where that is
    not in the source image; C is the number of source channels.
    """
    source = source if isinstance(source, Planes) else _plain(*source)
    table = np.array(phases, np.int32).reshape(-1)
    return KernelCall("copy", _copy(source, out, phases, stride, lanes), (table,), out.size)


def to_plain_image(source: Planes, lanes: int) -> KernelCall:
    """Image planes -> the tensor [images, channels, rows, cols] without gaps."""
    out = _plain(source.images, source.channels, source.rows, source.cols)
    return _repack(source, out, source.images * source.channels * source.rows * source.cols, lanes)


def image_to_tokens(source: Planes, out: Planes, lanes: int) -> KernelCall:
    """Image planes -> token planes [images, rows * cols, channels], as flatten(2).transpose(1, 2)."""
    image = replace(out, rows=source.rows, cols=source.cols, pitch=source.cols)
    return _repack(source, image, out.size, lanes)


def to_plain_tokens(source: Planes, lanes: int) -> KernelCall:
    """Token planes -> the tensor [images, tokens, channels] without gaps."""
    size = source.images * source.cols * source.channels
    return KernelCall("transpose", _transpose(source, False, lanes), (), size)


def tokens_from_plain(out: Planes, lanes: int) -> KernelCall:
    """The tensor [images, tokens, channels] without gaps -> token planes."""
    return KernelCall("transpose", _transpose(out, True, lanes), (), out.size)


def concat_channels(sources: tuple[Planes, ...], out: Planes, lanes: int) -> KernelCall:
    """Activations that differ in their number of channels -> one with the channels of all, in this order."""
    return KernelCall("concat", _concat(tuple(source.size for source in sources), lanes), (), out.size)


def _plain(images: int, channels: int, rows: int, cols: int) -> Planes:
    """Where a tensor [images, channels, rows, cols] lies. Its strides are no multiples of lanes."""
    image = rows * cols
    return Planes(images, channels, rows, cols, cols, 0, channels * image, image, zero_border=False)


def _repack(source: Planes, out: Planes, size: int, lanes: int) -> KernelCall:
    if source.pitch == source.cols and out.pitch == out.cols:  # nothing lies between rows: they are one
        source, out = (replace(p, rows=1, cols=p.positions, pitch=p.positions) for p in (source, out))
    return KernelCall("copy", _copy(source, out, ((0, 0),), (1, 1), lanes), (np.zeros(2, np.int32),), size)


@cache
def _copy(source: Planes, out: Planes, phases: tuple[Phase, ...], stride: tuple[int, int], lanes: int) -> Any:
    """Arrays: x, phase int32 [2 * phases] (row and column of each), y."""
    stride_y, stride_x = stride
    bands = bands_of(out, lanes)
    # Vectors of a row that lie in the source image for every phase, with all of the stride's columns.
    whole = max(0, min(out.cols, (source.cols - max(x for _, x in phases)) // stride_x)) // lanes

    def body(x: Any, phase: Any, y: Any) -> None:
        def task(task: Any) -> None:
            band, image, channel = task % bands, task // bands % out.images, task // bands // out.images
            first_row = T.bind(phase[channel // source.channels * 2])
            first_col = T.bind(phase[channel // source.channels * 2 + 1])
            start = T.bind(
                channel % source.channels * source.channel_stride
                + image * source.image_stride
                + (source.lead + first_row * source.pitch + first_col)
            )
            base = T.bind(channel * out.channel_stride + image * out.image_stride)
            rows = T.bind(_count(source.rows - first_row, stride_y, out.rows))
            cols = T.bind(_count(source.cols - first_col, stride_x, out.cols))
            clear_around(y, base, image, out, lanes, band, bands)

            def vector(row: Any, column: Any, count: Any) -> Any:
                """Columns of a row of the phase image; `count` source values lie behind the first, None: enough."""
                at = start + row * (stride_y * source.pitch) + column * stride_x
                if stride_x == 1:
                    return load(x, at, lanes, count)
                second = load(x, at + lanes, lanes, count if count is None else count - lanes)
                return every_second(load(x, at, lanes, count), second, lanes)

            def tail(row: Any, column: int) -> Any:
                value = vector(row, column, source.cols - first_col - column * stride_x)
                return kept(value, cols - column, 0.0, lanes)

            end = T.bind(out.rows * (band + 1) // bands)
            begin = T.bind(out.rows * band // bands)
            middle = T.bind(T.max(begin, T.min(rows, end)))
            with T.serial(begin, middle) as row:
                to = out.lead + base + row * out.pitch
                if stride_x <= 2:
                    store_row(y, to, row, out, lanes, whole, lambda c: vector(row, c, None), lambda c: tail(row, c))
                else:
                    # A row of zeros, then single values: strided vectors would be loaded value by value anyway.
                    store_row(y, to, row, out, lanes, 0, lambda c: None, lambda c: constant(0.0, lanes))
                    with T.serial(cols) as column:
                        at = start + row * (stride_y * source.pitch) + column * stride_x
                        T.buffer_store(y, x[at], [to + column])
            with T.serial(middle, end) as row:
                to = out.lead + base + row * out.pitch
                store_row(y, to, row, out, lanes, 0, lambda c: None, lambda c: constant(0.0, lanes))

        tasks(out.channels * out.images * bands, out.channels * out.images * out.positions, task)

    return prim_func(("float32", "int32", "float32"), body)


def _count(size: Any, stride: int, most: int) -> Any:
    """How many positions 0, stride... are below `size`, which may be negative, and `most`."""
    return T.max(0, T.min(most, (size + (stride - 1)) // stride))


@cache
def _transpose(planes: Planes, to_planes: bool, lanes: int) -> Any:
    """Arrays: x, y. Squares of lanes x lanes values go through registers."""
    channels, tokens = planes.channels, planes.cols
    token_squares, channel_squares = -(-tokens // lanes), -(-channels // lanes)

    def body(x: Any, y: Any) -> None:
        def task(task: Any) -> None:
            image, token = task // token_squares, task % token_squares * lanes
            in_planes = image * planes.image_stride + token

            def square(channel: Any, count: int) -> None:
                in_plain = (image * tokens + token) * channels + channel
                last_token = tokens - 1 - token
                if to_planes:
                    rows = [load(x, in_plain + T.min(i, last_token) * channels, lanes, count) for i in range(lanes)]
                    for i, row in enumerate(transposed(rows)[:count]):
                        store(y, (channel + i) * planes.channel_stride + in_planes, row, lanes)
                else:
                    # Whole vectors: those of the last tokens end in the border.
                    starts = [(channel + min(i, count - 1)) * planes.channel_stride for i in range(lanes)]
                    for i, row in enumerate(transposed([load(x, start + in_planes, lanes) for start in starts])):
                        with T.If(last_token >= i), T.Then():
                            store(y, in_plain + i * channels, row, lanes, count)

            if channels // lanes:
                with T.serial(channels // lanes) as c:
                    square(c * lanes, lanes)
            if channels % lanes:
                square((channel_squares - 1) * lanes, channels % lanes)

        tasks(planes.images * token_squares, planes.images * tokens * channels, task)

    return prim_func(("float32", "float32"), body)


@cache
def _concat(sizes: tuple[int, ...], lanes: int) -> Any:
    """Arrays: one of each size, y. Each task copies a part of every source."""
    parts = 16

    def body(*buffers: Any) -> None:
        *sources, y = buffers

        def task(part: Any) -> None:
            for i, (source, size) in enumerate(zip(sources, sizes)):
                vectors = size // lanes
                with T.serial(vectors * part // parts, vectors * (part + 1) // parts) as v:
                    store(y, sum(sizes[:i]) + v * lanes, load(source, v * lanes, lanes), lanes)

        tasks(parts, sum(sizes), task)

    return prim_func(("float32",) * (len(sizes) + 1), body)
