"""What a benchmark measures: the patterns and sparsities that are asked for, and where they fit."""

from __future__ import annotations

from collections.abc import Sequence

from pruneaug.errors import InputError
from pruneaug.network.ops import Op, can_have
from pruneaug.sparsity.patterns import NM, parse_pattern

BEST = "best"
"""In place of a pattern of `bench_network`: the fastest of those that a job's space has by default."""


def check_patterns(patterns: Sequence[str], *, nm: bool = False) -> list[str]:
    """The patterns in their one spelling, each once.

    Raises InputError for none, for a wrong one, for "dense", and for N:M unless `nm` allows it.
    """
    if BEST in patterns:
        raise InputError(
            f"`{BEST}` must stand alone, and for whole networks: `bench network NAME --pattern {BEST}` chooses it; but "
            f"got {', '.join(patterns)}; name blocks, such as block:8x1"
        )
    blocks = [parse_pattern(pattern) for pattern in patterns]
    if not blocks or None in blocks:
        raise InputError(
            f"patterns must be blocks, such as block:8x1, but got {', '.join(patterns) or 'none'}; "
            "dense is measured in any case"
        )
    if not nm and (found := next((block for block in blocks if isinstance(block, NM)), None)):
        raise InputError(
            f"a benchmark's patterns must be blocks, such as block:8x1, but got {found}; `bench kernels --device cuda "
            "--against torch-2:4` measures 2:4 beside dense layers, `bench network --device cuda` whole networks"
        )
    return list(dict.fromkeys(str(block) for block in blocks))


def check_sparsity(sparsity: float) -> None:
    """Raises InputError."""
    if not 0.0 <= sparsity < 1.0:
        raise InputError(f"a sparsity must lie in [0, 1), but got {sparsity:g}; for example 0.9")


def fits(op: Op, pattern: str) -> bool:
    """Whether the op's weight matrix holds a whole block of the pattern."""
    block = parse_pattern(pattern)
    return block is None or can_have(op, block)


def matrix_size(op: Op) -> str:
    """Of the op's weight matrix, as rows x cols."""
    rows, cols = op.matrix_shape
    return f"{rows}x{cols}"
