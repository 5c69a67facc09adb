"""Register tiles: vectors that a kernel's inner loop keeps in registers, and how many of them there may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.vectors import constant, load, store, transposed

Add = Callable[[Any, Any, Any], Any]
"""(sum, vector of equal scalars, vector) -> the new sum, of vectors."""


def _add_product(total: Any, scalar: Any, vector: Any) -> Any:
    """total + scalar * vector."""
    return total + scalar * vector


class Tile:
    """height x vectors accumulators of `lanes` values of a dtype, as `tile[row, vector]`.

    Made inside a task of a kernel that is being built (see `pruneaug.kernels.vectors`). Reading one gives a TIR
    expression; writing one, and every method, emits statements.
    """

    def __init__(self, height: int, vectors: int, lanes: int, dtype: str = "float32") -> None:
        self.height, self.vectors, self.lanes = height, vectors, lanes
        # TVM puts small buffers of scope "global" on the stack, where LLVM turns them into registers; those of a
        # kilobyte or more, or of scope "local", are memory that it allocates anew for each task.
        self._buffers = [
            [T.sblock_alloc_buffer((lanes,), dtype, scope="global") for _ in range(vectors)] for _ in range(height)
        ]

    def __getitem__(self, at: tuple[int, int]) -> Any:
        return self._buffers[at[0]][at[1]][self._run]

    def __setitem__(self, at: tuple[int, int], value: Any) -> None:
        T.buffer_store(self._buffers[at[0]][at[1]], value, [self._run])

    @property
    def _run(self) -> Any:
        return T.ramp(0, 1, self.lanes) if self.lanes > 1 else 0

    def fill(self, value: float) -> None:
        """All float32 values."""
        for row in range(self.height):
            for vector in range(self.vectors):
                self[row, vector] = constant(value, self.lanes)

    def multiply_add(
        self, left: Callable[[int], Any], right: Callable[[int], Any], height: int, add: Add = _add_product
    ) -> None:
        """tile[row, vector] += left(row) * right(vector), a scalar times a vector, in the first `height` rows.

        `add` is another operation of a sum, a vector of equal scalars and a vector.
        """
        vectors = [T.bind(right(vector)) for vector in range(self.vectors)]
        for row in range(height):
            scalar = T.bind(T.broadcast(left(row), self.lanes))
            for vector in range(self.vectors):
                self[row, vector] = add(self[row, vector], scalar, vectors[vector])

    def accumulate(self, left: Callable[[int], Any], right: Callable[[int], Any], add: Add = _add_product) -> None:
        """`multiply_add` in all rows. Those or the vectors, whichever are fewer, stay in registers beside the tile."""
        if self.height >= self.vectors:
            self.multiply_add(left, right, self.height, add)
            return
        scalars = [T.bind(T.broadcast(left(row), self.lanes)) for row in range(self.height)]
        for vector in range(self.vectors):
            values = T.bind(right(vector))
            for row, scalar in enumerate(scalars):
                self[row, vector] = add(self[row, vector], scalar, values)


def tile_height(vectors: int, registers: int) -> int:
    """How many rows of `vectors` accumulators leave a quarter of the registers for what is multiplied."""
    return max(1, min(16, registers * 3 // 4 // vectors))


def tile_vectors(row_vectors: int, most: int) -> int:
    """How many vectors of a row of `row_vectors` a tile has, up to `most`.

    The more, the fewer loads a product takes; but the last tile is moved back to the row's end and computes again what
    the one before it has.
    """
    most = min(most, row_vectors)
    return min(range(1, most + 1), key=lambda vectors: -(-row_vectors // vectors) * (vectors + 0.25))


def blocks(count: int, height: int, body: Callable[[Any, int], None]) -> None:
    """body(first, rows) for every `height` of `count` rows, and for what is left."""
    if count >= height:
        with T.serial(count // height) as block:
            body(block * height, height)
    if count % height:
        body(count // height * height, count % height)


def copy_transposed(array: Any, row: Callable[[Any], Any], out: Any, length: int, vectors: int, lanes: int) -> None:
    """out[i, j] = array[row(j) + i] for i < length and j < vectors * lanes, in squares of vectors."""

    def square(first: Any, count: int) -> None:
        for vector in range(vectors):
            columns = [load(array, row(vector * lanes + lane) + first, lanes, count) for lane in range(lanes)]
            for i, values in enumerate(transposed(columns)[:count]):
                store(out, (first + i) * vectors * lanes + vector * lanes, values, lanes)

    blocks(length, lanes, square)
