"""Which variants of the CPU kernel are worth measuring for an op and a pattern."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pruneaug.errors import InputError
from pruneaug.kernels.layouts import Layouts
from pruneaug.network.ops import Conv2dOp, LinearOp, Op

_HEIGHTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16)
_MOST_VECTORS = 13
_GOOD_HEIGHT = 4  # rows that read a vector of X often enough
_FMA_CHAINS = 8  # latency of a multiply-add times the multiply-adds per cycle, on current x86 and ARM cores

# Cycles, fitted to the times of 26 layers with 9 patterns and sparsities each (about 20 variants a case, AVX-512). They
# shorten the list well: the best of its three takes 3 % longer than the best of all, on average.
_FIRST, _SECOND = 32_000, 700_000  # bytes of the caches that X, or weights, can have for themselves
_LINE = 64  # bytes
_NEAR_LINE, _FAR_LINE = 0.5, 1.0  # a line of X from the second cache, and from farther away
_FAR_WEIGHT = 0.8  # a line of weights that the second cache does not hold
_TILE, _STORED_ROW, _STORED = 16.0, 3.3, 1.3  # a tile, each of its rows, each of its vectors
_TRANSPOSED_TILE, _TRANSPOSED = 165.0, 11.0  # the same with rows as lanes, and each square of vectors
_COPIED_ROW = 100.0  # a row of an input that is copied because of a stride
_NAME = re.compile(r"h([1-9]\d*)([vp])([1-9]\d*)s([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Variant:
    """Tiles of `height` rows x `vectors` registers; the row groups are divided into `splits` tasks of alike work.

    With `positions`, a group's rows are the lanes of registers, and a tile has up to so many positions; `vectors` is 0,
    and a single split is divided by the rows of the image. For a linear layer of one token rows are always the lanes,
    and `vectors` is 1.
    """

    height: int
    vectors: int
    splits: int
    positions: int = 0

    def __str__(self) -> str:
        width = f"p{self.positions}" if self.positions else f"v{self.vectors}"
        return f"h{self.height}{width}s{self.splits}"


def parse_variant(name: str) -> Variant:
    """The variant of this name. Raises InputError if it is none."""
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError(f"a kernel variant must read like 'h8v3s1' or 'h32p14s2', but got {name!r}")
    height, kind, width, splits = match.groups()
    vectors, positions = (int(width), 0) if kind == "v" else (0, int(width))
    return Variant(int(height), vectors, int(splits), positions)


def candidates(
    op: Op, block_rows: int, sparsity: float, *, lanes: int, registers: int, threads: int, most: int = 3
) -> list[Variant]:
    """The `most` variants with the least estimated cost, for a pattern with blocks of `block_rows` rows.

    The estimate only shortens the list; the time decides.
    """
    rows = op.matrix_shape[0]
    group_rows = rows // op.groups if isinstance(op, Conv2dOp) else rows
    heights = [
        height
        for height in _HEIGHTS
        if height <= rows and (sparsity == 0 or block_rows % height == 0 or height % block_rows == 0)
    ]
    # Whole groups waste nothing, and only they can read a residual. A prime number of rows has none worth having.
    whole = [height for height in heights if group_rows % height == 0]
    if group_rows < rows or max(whole) >= _GOOD_HEIGHT or max(whole) == max(heights):
        heights = whole
    if isinstance(op, LinearOp) and op.tokens == 1:
        ranked = _vector_variants(rows, [*heights, 32, 64], block_rows, sparsity, lanes, threads)
    else:
        costs = _tile_costs(op, heights, block_rows, sparsity, lanes, registers, threads)
        costs |= _row_costs(op, group_rows, block_rows, sparsity, lanes, registers, threads)
        ranked = sorted(costs, key=lambda variant: costs[variant])
    return ranked[:most]


def _fill(height: int, block_rows: int, sparsity: float) -> float:
    """Columns that a row group computes for each one that its average row keeps: a tall group joins several blocks."""
    span = max(1, height // block_rows)
    return (1 - sparsity**span) / (1 - sparsity) if sparsity < 1 else 1.0


def _vector_variants(
    rows: int, heights: list[int], block_rows: int, sparsity: float, lanes: int, threads: int
) -> list[Variant]:
    """For one token: the weights' bytes, their column numbers, and the lanes that a short group leaves empty."""
    costs: dict[Variant, float] = {}
    for height in heights:
        is_power = height & (height - 1) == 0
        if rows % height or not is_power or (sparsity > 0 and max(height, block_rows) % min(height, block_rows)):
            continue
        for splits in (threads, 4 * threads):
            if splits <= -(-rows // height):
                work = 1 + (1 + max(0, lanes - height) / 8) / height
                costs[Variant(height, 1, splits)] = _fill(height, block_rows, sparsity) * work
    return sorted(costs, key=lambda variant: costs[variant]) or [Variant(1, 1, 1)]


def tile_shape(image: tuple[int, int], positions: int, lanes: int) -> tuple[int, int]:
    """(rows, cols) of tiles of at most `positions` positions: whole rows of the image, or parts of one."""
    rows, cols = image
    most = min(positions, lanes)
    across = -(-cols // most)
    even = -(-cols // across)
    if across == 1:
        return max(1, min(positions // cols, rows)), cols
    # A short last tile costs little; one of several rows would be computed for each of them.
    return 1, most if rows == 1 and cols % most <= most // 3 else even


def _tile_costs(
    op: Op, heights: list[int], block_rows: int, sparsity: float, lanes: int, registers: int, threads: int
) -> dict[Variant, float]:
    """Cycles of the busiest thread: multiply-adds or loads, inputs and weights that come from afar, storing."""
    rows, columns = op.matrix_shape
    images, positions = _positions(op, lanes)
    row_vectors = positions // lanes
    # A row of X that a convolution reads starts anywhere, so most of its loads touch two cache lines.
    lines = 1 if isinstance(op, LinearOp) or op.kernel == (1, 1) else 2
    reads = 4 * lanes * (columns if isinstance(op, LinearOp) else op.in_channels * op.kernel[0])  # for each vector
    copy = 0.0
    if isinstance(op, Conv2dOp) and op.stride != (1, 1):
        copy = _COPIED_ROW * op.in_channels * op.height * images
    best: dict[tuple[int, int], tuple[float, Variant]] = {}  # the best number of splits for each height and width
    for height in heights:
        groups = -(-rows // height)
        kept = columns * (1 - sparsity) * _fill(height, block_rows, sparsity)
        for vectors in range(1, _MOST_VECTORS + 1):
            if height * vectors + min(height, vectors) + 1 > registers or vectors > row_vectors:
                break
            whole, tail = divmod(row_vectors, vectors)
            widths = [vectors] * whole + [tail] * (tail > 0)
            for splits in {1, threads, 2 * threads}:
                if splits > groups or (splits > threads and images * len(widths) * splits > 4 * threads):
                    continue
                near_weights = 4 * kept * height * groups / splits <= _SECOND
                cycles = {
                    width: _tile_cycles(height, width, kept, lines, reads * (width + lines - 1), near_weights)
                    for width in set(widths)
                }
                tiles = [cycles[width] for width in widths]
                cost = groups * _longest(tiles * images, splits, threads) + copy / threads
                cost *= 1 + 0.001 * splits
                if cost < best.get((height, vectors), (float("inf"),))[0]:
                    best[height, vectors] = cost, Variant(height, vectors, splits)
    return {variant: cost for cost, variant in best.values()}


def _tile_cycles(height: int, vectors: int, kept: float, lines: int, x_bytes: float, near_weights: bool) -> float:
    """Of one tile of a row group that keeps so many columns."""
    busy = max(_multiply_adds(height * vectors), (height + lines * vectors) / 2)
    from_afar = _line(x_bytes) * vectors + (0 if near_weights else _FAR_WEIGHT * height * 4 / _LINE)
    return kept * (busy + from_afar) + _TILE + height * (_STORED_ROW + _STORED * vectors)


def _row_costs(
    op: Op, group_rows: int, block_rows: int, sparsity: float, lanes: int, registers: int, threads: int
) -> dict[Variant, float]:
    """The same for rows as lanes: no lane is empty, but every tile is transposed."""
    rows, columns = op.matrix_shape
    image = (1, op.tokens) if isinstance(op, LinearOp) else op.out_size
    images = 1 if isinstance(op, LinearOp) else op.batch
    x_bytes = 4 * op.tokens * columns if isinstance(op, LinearOp) else 4 * op.in_channels * op.height * op.width
    stride = 1 if isinstance(op, LinearOp) else op.stride[1]
    costs: dict[Variant, float] = {}
    for vectors in range(1, 5):
        height = vectors * lanes
        if group_rows % height or (sparsity > 0 and max(height, block_rows) % min(height, block_rows)):
            continue
        most = (registers - 1) // vectors - 1
        tile_rows, tile_cols = tile_shape(image, most, lanes)
        tile, down, across = tile_rows * tile_cols, -(-image[0] // tile_rows), -(-image[1] // tile_cols)
        kept = columns * (1 - sparsity) * _fill(height, block_rows, sparsity)
        busy = max(_multiply_adds(tile * vectors), (tile + vectors) / 2)
        busy += _FAR_WEIGHT * vectors if 4 * kept * height > _SECOND else 0
        for splits in {1, min(threads, rows // height)}:
            # One split is divided by rows of the image instead.
            units = images * down if splits == 1 else rows // height
            busiest = -(-units // threads) / units
            near = x_bytes / (threads if splits == 1 else 1)
            x_lines = tile_rows * (1 + tile_cols * stride / lanes)
            work = kept * (busy + _line(near) * x_lines)
            work += _TRANSPOSED_TILE + _TRANSPOSED * vectors * max(1.0, tile / lanes)
            count = rows // height * images * down * across * busiest
            costs[Variant(height, 0, splits, tile)] = count * work * (1 + 0.001 * splits)
    return costs


def _multiply_adds(accumulators: int) -> float:
    """Cycles of one column of a tile: two multiply-adds in each, where enough of them are independent."""
    return max(accumulators, _FMA_CHAINS) / 2


def _line(working_set: float) -> float:
    """Cycles that a cache line of X costs beside the arithmetic, by how much lies between two uses of it."""
    return 0.0 if working_set <= _FIRST else _NEAR_LINE if working_set <= _SECOND else _FAR_LINE


def _longest(tiles: list[float], splits: int, threads: int) -> float:
    """Work of the thread that has the most, where tasks are dealt out in runs of equal number."""
    tasks = [work / splits for _ in range(splits) for work in tiles]
    count = len(tasks)
    run = -(-count // threads)
    return max(sum(tasks[first : first + run]) for first in range(0, count, run))


def _positions(op: Op, lanes: int) -> tuple[int, int]:
    """Images, and the positions that a kernel computes for each, whole vectors."""
    if isinstance(op, LinearOp):
        return 1, -(-op.tokens // lanes) * lanes
    planes = Layouts([op], lanes).output(op)
    return op.batch, -(-planes.positions // lanes) * lanes
