"""Softmax over the last dimension of a tensor in plain memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.functions import apply
from pruneaug.kernels.tiles import Tile, blocks
from pruneaug.kernels.vectors import constant, kept, load, prim_func, store, tasks


def softmax(rows: int, cols: int, lanes: int) -> KernelCall:
    """exp(x) / sum(exp(x)) along each of the `rows` contiguous rows of `cols` values; plain -> plain.

    As in PyTorch, a row is NaN where it holds NaN or infinity or is all minus infinity.
    """
    return KernelCall("softmax", _softmax(rows, cols, lanes), (), rows * cols)


@cache
def _softmax(rows: int, cols: int, lanes: int) -> Any:
    """Arrays: x, y."""

    def body(x: Any, y: Any) -> None:
        def task(row: Any) -> None:
            start = T.bind(row * cols)
            largest, total, value = (Tile(1, 1, lanes) for _ in range(3))
            largest.fill(-math.inf)
            total.fill(0.0)

            def read(at: Any, count: int) -> None:
                # Stored before the selection, within which TVM would take its condition, the load's mask, for true.
                value[0, 0] = load(x, start + at, lanes, count)
                value[0, 0] = kept(value[0, 0], count, -math.inf, lanes)

            def maximum(at: Any, count: int) -> None:
                read(at, count)
                largest[0, 0] = T.max(largest[0, 0], value[0, 0])

            def weigh(at: Any, count: int) -> None:
                read(at, count)
                value[0, 0] = apply("exp", value[0, 0] - largest[0, 0], lanes)
                store(y, start + at, value[0, 0], lanes, count)
                total[0, 0] = total[0, 0] + value[0, 0]

            def divide(at: Any, count: int) -> None:
                store(y, start + at, load(y, start + at, lanes, count) * total[0, 0], lanes, count)

            blocks(cols, lanes, maximum)
            _reduce(largest, T.max)
            blocks(cols, lanes, weigh)
            _reduce(total, lambda a, b: a + b)
            total[0, 0] = constant(1.0, lanes) / total[0, 0]
            blocks(cols, lanes, divide)

        tasks(rows, rows * cols, task)

    return prim_func(["float32"] * 2, body)


def _reduce(tile: Tile, reduce: Callable[[Any, Any], Any]) -> None:
    """Make every lane of a tile of one vector the reduction of all; lanes must be a power of two."""
    distance = tile.lanes // 2
    while distance:
        swapped = T.Shuffle([tile[0, 0]], [lane ^ distance for lane in range(tile.lanes)])
        tile[0, 0] = reduce(tile[0, 0], swapped)
        distance //= 2
