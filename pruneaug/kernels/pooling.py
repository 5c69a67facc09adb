"""Pooling of image planes: windows' maxima and means, and means of whole images."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T

from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.planes import Planes
from pruneaug.kernels.vectors import (
    clear_around,
    constant,
    every_second,
    fill,
    kept,
    load,
    prim_func,
    scratch,
    store,
    store_row,
    sum_of,
    tasks,
)

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]  # top, left, bottom, right


def max_pool(
    x: Planes, y: Planes, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair, lanes: int
) -> KernelCall:
    """The maximum of each window; padding never is one, and NaN always is. ceil_mode is in the size of y."""
    return KernelCall("max pool", _pool(x, y, kernel, stride, padding[:2], dilation, False, lanes), (), y.size)


def avg_pool(
    x: Planes,
    y: Planes,
    kernel: Pair,
    stride: Pair,
    padding: Padding,
    count_include_pad: bool,
    divisor_override: int | None,
    lanes: int,
) -> KernelCall:
    """The mean of each window, as torch.nn.functional.avg_pool2d's; ceil_mode is in the size of y.

    A window that ceil_mode lets end behind the padding is counted only up to there.
    """
    top, left, bottom, right = padding
    by_row = _counts(y.rows, kernel[0], stride[0], x.rows, top, bottom, count_include_pad)
    by_col = _counts(y.cols, kernel[1], stride[1], x.cols, left, right, count_include_pad)
    if divisor_override is not None:
        by_row, by_col = np.full_like(by_row, divisor_override), np.ones_like(by_col)
    factors = (_factors(by_row, lanes), _factors(by_col, lanes))
    function = _pool(x, y, kernel, stride, (top, left), (1, 1), True, lanes)
    return KernelCall("average pool", function, factors, y.size)


def adaptive_avg_pool(x: Planes, y: Planes, lanes: int) -> KernelCall:
    """Means of windows that divide the image about evenly among the positions of y, as PyTorch's: they may overlap."""
    if x.rows % y.rows == 0 and x.cols % y.cols == 0:
        window = (x.rows // y.rows, x.cols // y.cols)
        return avg_pool(x, y, window, window, (0, 0, 0, 0), True, None, lanes)
    spans = [_spans(x.rows, y.rows), _spans(x.cols, y.cols)]
    constants = (*(span.reshape(-1) for span in spans), *(_factors(span[:, 1] - span[:, 0], lanes) for span in spans))
    return KernelCall("average pool", _adaptive(x, y, lanes), constants, y.size)


def global_pool(x: Planes, out: Planes, lanes: int) -> KernelCall:
    """The mean of each channel of each image: planes -> token planes [1, images, channels]."""
    return KernelCall("mean", _global(x, out, lanes), (), out.size)


def _counts(
    outputs: int, kernel: int, stride: int, size: int, before: int, after: int, with_padding: bool
) -> npt.NDArray[np.int64]:
    """How many positions along one axis each window is divided by."""
    start = np.arange(outputs) * stride - before
    end = np.minimum(start + kernel, size + after)
    return end - start if with_padding else np.minimum(end, size) - np.maximum(start, 0)


def _spans(size: int, outputs: int) -> npt.NDArray[np.int32]:
    """[outputs, 2]: where each adaptive window starts and ends."""
    index = np.arange(outputs)
    return np.stack([index * size // outputs, -(-(index + 1) * size // outputs)], axis=1).astype(np.int32)


def _factors(counts: npt.NDArray[Any], lanes: int) -> npt.NDArray[np.float32]:
    """1 / counts, with zeros up to a whole vector."""
    factors = np.zeros(-(-len(counts) // lanes) * lanes, np.float32)
    factors[: len(counts)] = 1 / counts
    return factors


def _max(a: Any, b: Any) -> Any:
    # T.max(a, b) is b where one of them is NaN.
    return T.Select(T.isnan(a), a, T.max(a, b))


@cache
def _pool(
    x: Planes, y: Planes, kernel: Pair, stride: Pair, before: Pair, dilation: Pair, mean: bool, lanes: int
) -> Any:
    """Arrays: x; for a mean the factors by row and by column; y.

    For each row of y, the rows of its windows are first reduced to one, in contiguous vectors, then that row's columns.
    """
    neutral = 0.0 if mean else -math.inf
    whole = y.cols // lanes
    # The reduced row lies behind `margin` neutral values, and ends with as many as the last vector's windows reach.
    margin = -(-before[1] // lanes) * lanes
    in_vectors, out_vectors = -(-x.cols // lanes), -(-y.cols // lanes)
    reach = margin - before[1] + (out_vectors * lanes - 1) * stride[1] + (kernel[1] - 1) * dilation[1] + 2
    row_vectors = max(margin // lanes + in_vectors, -(-reach // lanes))

    def reduced(a: Any, b: Any) -> Any:
        return a + b if mean else _max(a, b)

    def body(x_array: Any, *others: Any) -> None:
        y_array = others[-1]

        def task(task: Any) -> None:
            image, channel = task % x.images, task // x.images
            start = T.bind(channel * x.channel_stride + image * x.image_stride + x.lead)
            base = T.bind(channel * y.channel_stride + image * y.image_stride)
            line = scratch(row_vectors * lanes)
            total = scratch(lanes)
            clear_around(y_array, base, image, y, lanes)
            fill(line, 0, row_vectors, lanes, neutral)

            def accumulate(steps: int, value: Any) -> Any:
                store(total, 0, value(0), lanes)
                if steps > 1:
                    with T.serial(1, steps) as k:
                        store(total, 0, reduced(load(total, 0, lanes), value(k)), lanes)
                return load(total, 0, lanes)

            def down(row: Any, column: Any, count: int) -> None:
                def value(k: Any) -> Any:
                    source = row * stride[0] - before[0] + k * dilation[0]
                    inside = T.And(source >= 0, source < x.rows)
                    at = start + T.max(0, T.min(source, x.rows - 1)) * x.pitch + column
                    return T.Select(inside, load(x_array, at, lanes, count), constant(neutral, lanes))

                store(line, margin + column, kept(accumulate(kernel[0], value), count, neutral, lanes), lanes)

            def across(row: Any, column: Any) -> Any:
                def value(k: Any) -> Any:
                    at = margin - before[1] + column * stride[1] + k * dilation[1]
                    if stride[1] == 1:
                        return load(line, at, lanes)
                    if stride[1] == 2:
                        return every_second(load(line, at, lanes), load(line, at + lanes, lanes), lanes)
                    return line[T.ramp(at, stride[1], lanes)]

                result = accumulate(kernel[1], value)
                if mean:
                    result = result * (T.broadcast(others[0][row], lanes) * load(others[1], column, lanes))
                return result

            with T.serial(y.rows) as row:
                if x.cols // lanes:
                    with T.serial(x.cols // lanes) as v:
                        down(row, v * lanes, lanes)
                if x.cols % lanes:
                    down(row, x.cols // lanes * lanes, x.cols % lanes)
                store_row(
                    y_array,
                    base + y.lead + row * y.pitch,
                    row,
                    y,
                    lanes,
                    whole,
                    lambda column: across(row, column),
                    lambda column: kept(across(row, column), y.cols - column, 0.0, lanes),
                )

        tasks(x.images * x.channels, y.images * y.channels * y.positions, task)

    return prim_func(("float32",) * (4 if mean else 2), body)


@cache
def _adaptive(x: Planes, y: Planes, lanes: int) -> Any:
    """Arrays: x; int32 spans of rows and columns; factors by row and by column; y."""
    vectors = -(-x.cols // lanes)

    def body(x_array: Any, rows: Any, cols: Any, by_row: Any, by_col: Any, y_array: Any) -> None:
        def task(task: Any) -> None:
            image, channel = task % x.images, task // x.images
            start = T.bind(channel * x.channel_stride + image * x.image_stride + x.lead)
            base = T.bind(channel * y.channel_stride + image * y.image_stride)
            line = scratch(vectors * lanes)
            total = scratch(1)
            clear_around(y_array, base, image, y, lanes)

            def add(source: Any, column: Any, count: int) -> None:
                value = load(x_array, start + source * x.pitch + column, lanes, count)
                store(line, column, load(line, column, lanes) + value, lanes)

            with T.serial(y.rows) as row:
                to = base + y.lead + row * y.pitch
                store_row(y_array, to, row, y, lanes, 0, lambda c: None, lambda c: constant(0.0, lanes))
                fill(line, 0, vectors, lanes)
                with T.serial(rows[row * 2], rows[row * 2 + 1]) as source:
                    if x.cols // lanes:
                        with T.serial(x.cols // lanes) as v:
                            add(source, v * lanes, lanes)
                    if x.cols % lanes:
                        add(source, x.cols // lanes * lanes, x.cols % lanes)
                with T.serial(y.cols) as column:
                    T.buffer_store(total, T.float32(0), [0])
                    with T.serial(cols[column * 2], cols[column * 2 + 1]) as source:
                        T.buffer_store(total, total[0] + line[source], [0])
                    T.buffer_store(y_array, total[0] * (by_row[row] * by_col[column]), [to + column])

        tasks(x.images * x.channels, x.images * x.channels * x.positions, task)

    return prim_func(("float32", "int32", "int32", "float32", "float32", "float32"), body)


@cache
def _global(x: Planes, out: Planes, lanes: int) -> Any:
    """Arrays: x, y. Zeros between the rows do not change a sum."""
    vectors, rest = divmod(x.positions, lanes)
    chains = 4  # sums that do not wait for each other

    def body(x_array: Any, y_array: Any) -> None:
        def task(task: Any) -> None:
            image, channel = task % x.images, task // x.images
            start = T.bind(channel * x.channel_stride + image * x.image_stride + x.lead)
            totals = [scratch(lanes) for _ in range(chains)]

            def add(chain: int, value: Any) -> None:
                store(totals[chain], 0, load(totals[chain], 0, lanes) + value, lanes)

            for total in totals:
                store(total, 0, constant(0.0, lanes), lanes)
            if vectors // chains:
                with T.serial(vectors // chains) as v:
                    for chain in range(chains):
                        add(chain, load(x_array, start + (v * chains + chain) * lanes, lanes))
            for v in range(vectors // chains * chains, vectors):
                add(v % chains, load(x_array, start + v * lanes, lanes))
            if rest:
                value = load(x_array, start + vectors * lanes, lanes)
                add(vectors % chains, kept(value, rest, 0.0, lanes))
            result = sum_of(sum(load(total, 0, lanes) for total in totals), lanes)
            result = result * T.float32(1 / (x.rows * x.cols))
            T.buffer_store(y_array, result, [channel * out.channel_stride + image])

        tasks(x.images * x.channels, x.images * x.channels * x.positions, task)

    return prim_func(("float32", "float32"), body)
