"""Which variants of the CPU kernel are worth measuring for an op and a pattern."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pruneaug.errors import InputError
from pruneaug.network.ops import LinearOp, Op

_HEIGHTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16)
_MOST_VECTORS = 12
_FMA_CHAINS = 8  # latency of a multiply-add times the multiply-adds per cycle, on current x86 and ARM cores
_NAME = re.compile(r"h([1-9]\d*)v([1-9]\d*)s([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Variant:
    """Tiles of `height` rows x `vectors` registers; the row groups are divided into `splits` tasks of alike work."""

    height: int
    vectors: int
    splits: int

    def __str__(self) -> str:
        return f"h{self.height}v{self.vectors}s{self.splits}"


def parse_variant(name: str) -> Variant:
    """The variant of this name. Raises InputError if it is none."""
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError(f"a kernel variant must read like 'h8v3s1', but got {name!r}")
    return Variant(*map(int, match.groups()))


def positions(op: Op) -> int:
    """Flat positions that the kernel computes for one image, the columns of padding between rows included."""
    if isinstance(op, LinearOp):
        return op.tokens
    rows, cols = op.out_size
    return (rows - 1) * phase_size(op)[1] + cols


def phase_size(op: Op) -> tuple[int, int]:
    """(rows, cols) of one zero-padded phase image of a convolution's input."""
    assert not isinstance(op, LinearOp)
    top, left, bottom, right = op.padding
    out_rows, out_cols = op.out_size
    reach_y, reach_x = (op.dilation[0] * (op.kernel[0] - 1), op.dilation[1] * (op.kernel[1] - 1))
    rows = max(-(-(op.height + top + bottom) // op.stride[0]), out_rows + reach_y // op.stride[0])
    cols = max(-(-(op.width + left + right) // op.stride[1]), out_cols + reach_x // op.stride[1])
    return rows, cols


def candidates(
    op: Op, block_rows: int, sparsity: float, *, lanes: int, registers: int, threads: int, most: int = 3
) -> list[Variant]:
    """The `most` variants with the least estimated cost, for a pattern with blocks of `block_rows` rows.

    The estimate counts issue slots: computed positions, columns that a tall group keeps for only some of its rows,
    loads beside multiply-adds, too few independent accumulators, and idle threads. It only shortens the list; the time
    decides.
    """
    batch = 1 if isinstance(op, LinearOp) else op.batch
    pixels = positions(op)
    rows = op.matrix_shape[0]
    best: dict[tuple[int, int], tuple[float, Variant]] = {}  # the best number of splits for each height and width
    for height in _HEIGHTS:
        if height > rows or (block_rows % height and height % block_rows and sparsity > 0):
            continue
        groups = -(-rows // height)
        for vectors in range(1, _MOST_VECTORS + 1):
            if height * vectors + min(height, vectors) + 1 > registers or (vectors - 1) * lanes >= pixels:
                break
            tiles = -(-pixels // (vectors * lanes))
            waste = tiles * vectors * lanes / pixels * (groups * height / rows)
            span = max(1, height // block_rows)
            fill = (1 - sparsity**span) / (1 - sparsity) if sparsity < 1 else 1.0
            # A row of X starts anywhere, so most of its loads touch two cache lines.
            loads = (height + 2 * vectors) / (height * vectors)
            chains = max(1.0, _FMA_CHAINS / (height * vectors))
            for splits in {1, threads, 2 * threads}:
                tasks = batch * tiles * splits
                if splits > groups or (splits > threads and tasks > 4 * threads):
                    continue
                idle = -(-tasks // threads) * threads / tasks
                cost = waste * fill * idle * (max(1.0, loads) * chains + 0.5 * loads) * (1 + 0.001 * splits)
                if cost < best.get((height, vectors), (float("inf"),))[0]:
                    best[height, vectors] = cost, Variant(height, vectors, splits)
    ranked = sorted(best.values(), key=lambda item: item[0])
    return [variant for _, variant in ranked[:most]]
