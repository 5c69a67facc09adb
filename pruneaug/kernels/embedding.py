"""Embeddings: the rows of a table that numbers choose."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T

from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.planes import Planes
from pruneaug.kernels.tiles import blocks
from pruneaug.kernels.vectors import load, prim_func, store, tasks, transposed


def embedding(table: npt.NDArray[np.float32], y: Planes, lanes: int) -> KernelCall:
    """ids int64 [images * tokens] -> y, token planes of the rows of `table` float32 [rows, channels].

    An id outside the table counts as its first or last row, as with every operator that indexes. Raises ValueError for
    a table of 2^31 values or more.
    """
    rows, channels = _checked(table)
    return KernelCall("embedding", _embedding(rows, channels, y, lanes), (table.reshape(-1),), y.size)


def embedding_plain(table: npt.NDArray[np.float32], count: int, lanes: int) -> KernelCall:
    """ids int64 [count] -> plain float32 [count, channels]; otherwise as `embedding`."""
    rows, channels = _checked(table)
    return KernelCall("embedding", _plain(rows, channels, count, lanes), (table.reshape(-1),), count * channels)


def _checked(table: npt.NDArray[np.float32]) -> tuple[int, int]:
    if table.size >= 2**31:
        raise ValueError(f"an embedding's table must have fewer than 2^31 values, but got {table.shape}")
    return table.shape[0], table.shape[1]


def _offset(ids: Any, at: Any, rows: int, channels: int) -> Any:
    """Where the row of the table begins that the id at `at` chooses."""
    row = T.max(T.int64(0), T.min(ids[at], T.int64(rows - 1)))
    return T.bind(T.Cast("int32", row) * channels)


@cache
def _embedding(rows: int, channels: int, y: Planes, lanes: int) -> Any:
    """Arrays: ids, table, y. Squares of as many tokens and channels as a vector has lanes are transposed."""
    tiles = -(-y.cols // lanes)

    def body(ids: Any, table: Any, out: Any) -> None:
        def task(index: Any) -> None:
            image, start = T.bind(index // tiles), T.bind(index % tiles * lanes)
            # Behind the last token, in the border, that token's row is written again.
            tokens = [image * y.cols + T.min(start + lane, y.cols - 1) for lane in range(lanes)]
            offsets = [_offset(ids, token, rows, channels) for token in tokens]

            def square(first: Any, count: int) -> None:
                columns = transposed([load(table, offset + first, lanes, count) for offset in offsets])
                for i in range(count):
                    at = (first + i) * y.channel_stride + image * y.image_stride + y.lead + start
                    store(out, at, columns[i], lanes)

            blocks(channels, lanes, square)

        tasks(y.images * tiles, y.size, task)

    return prim_func(["int64", "float32", "float32"], body)


@cache
def _plain(rows: int, channels: int, count: int, lanes: int) -> Any:
    """Arrays: ids, table, y."""

    def body(ids: Any, table: Any, out: Any) -> None:
        def task(index: Any) -> None:
            offset = _offset(ids, index, rows, channels)

            def copy(first: Any, values: int) -> None:
                store(out, index * channels + first, load(table, offset + first, lanes, values), lanes, values)

            blocks(channels, lanes, copy)

        tasks(count, count * channels, task)

    return prim_func(["int64", "float32", "float32"], body)
