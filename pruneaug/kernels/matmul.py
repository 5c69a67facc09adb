"""Products of two dense activations in plain memory."""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.tiles import Tile, copy_transposed, tile_height, tile_vectors
from pruneaug.kernels.vectors import load, prim_func, store, tasks

_TASKS = 8  # fewer tiles of columns are divided into blocks of rows, so that every thread has a share


def matmul(
    batch: int,
    m: int,
    n: int,
    k: int,
    target: CpuTarget,
    *,
    transposed_a: bool = False,
    transposed_b: bool = False,
    shared_a: bool = False,
    shared_b: bool = False,
) -> KernelCall:
    """a [batch, m, k] @ b [batch, k, n] -> y [batch, m, n], all plain float32.

    A transposed operand lies as [batch, k, m] or [batch, n, k]; a shared one has no batch. All sizes are at least 1.
    """
    function = _matmul(
        batch, m, n, k, transposed_a, transposed_b, shared_a, shared_b, target.lanes, target.registers
    )  # fmt: skip
    return KernelCall("matrix product", function, (), batch * m * n)


@cache
def _matmul(
    batch: int,
    m: int,
    n: int,
    k: int,
    transposed_a: bool,
    transposed_b: bool,
    shared_a: bool,
    shared_b: bool,
    lanes: int,
    registers: int,
) -> Any:
    """Arrays: a, b, y. The last tile is moved back to the end of the rows or columns, and so computes some twice."""
    vectors = tile_vectors(max(1, n // lanes), 3)
    columns = min(n, vectors * lanes)  # fewer than a vector only where n is
    height = min(m, tile_height(vectors, registers))
    tiles, blocks = -(-n // columns), -(-m // height)
    parts = min(blocks, max(1, -(-_TASKS // (batch * tiles))))
    part_blocks = -(-blocks // parts)

    def body(a: Any, b: Any, y: Any) -> None:
        def task(index: Any) -> None:
            part, image = T.bind(index % parts), T.bind(index // parts // tiles)
            column = T.bind(T.min(index // parts % tiles * columns, n - columns))
            a_base = 0 if shared_a else T.bind(image * (m * k))
            b_base = 0 if shared_b else T.bind(image * (k * n))
            tile = Tile(height, vectors, lanes)
            right, right_base, right_stride = b, b_base + column, n
            if transposed_b:
                right = T.sblock_alloc_buffer((k * vectors * lanes,), "float32", scope="local")
                right_base, right_stride = 0, vectors * lanes
                copy_transposed(
                    b, lambda i: b_base + (column + T.min(i, columns - 1)) * k, right, k, vectors, lanes
                )  # fmt: skip

            def product(block: Any) -> None:
                row = T.bind(T.min((part * part_blocks + block) * height, m - height))
                tile.fill(0.0)
                with T.serial(k) as inner:
                    tile.multiply_add(
                        lambda i: a[a_base + (inner * m + row + i if transposed_a else (row + i) * k + inner)],
                        lambda v: load(right, right_base + inner * right_stride + v * lanes, lanes, in_tile),
                        height,
                    )
                for i in range(height):
                    for v in range(vectors):
                        store(y, (image * m + row + i) * n + column + v * lanes, tile[i, v], lanes, columns)

            in_tile = lanes if transposed_b else columns
            with T.serial(part_blocks) as block:
                product(block)

        tasks(batch * tiles * parts, batch * m * n * k // 16, task)

    return prim_func(["float32"] * 3, body)
