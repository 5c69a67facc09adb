"""Patterns: which weights of a weight matrix may be zero together.

A weight matrix has one row per output feature and one column per input: input features for a linear layer,
(ky, kx, input channel) in this order for a convolution. See `pruneaug.sparsity.matrix`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pruneaug.errors import InputError

_BLOCK = re.compile(r"block:([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True, slots=True, order=True)
class Block:
    """Blocks of `rows` x `cols` weights are kept or removed whole; the last of a row or column may be narrower."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise InputError(f"a block's rows and cols must be at least 1, but got {self.rows}x{self.cols}")

    def __str__(self) -> str:
        return f"block:{self.rows}x{self.cols}"

    def grid(self, matrix_shape: tuple[int, int]) -> tuple[int, int]:
        """Number of blocks along rows and along columns of a matrix of this shape."""
        return -(-matrix_shape[0] // self.rows), -(-matrix_shape[1] // self.cols)

    def fits(self, matrix_shape: tuple[int, int]) -> bool:
        """Whether a matrix of this shape holds a whole block."""
        return self.rows <= matrix_shape[0] and self.cols <= matrix_shape[1]


ELEMENT = Block(1, 1)


def parse_pattern(text: str) -> Block | None:
    """Read `"block:8x1"`, `"element"` or `"dense"` (None).

    Raises InputError for anything else.
    """
    if text == "dense":
        return None
    if text == "element":
        return ELEMENT
    match = _BLOCK.fullmatch(text)
    if not match:
        raise InputError(
            f"a pattern must be 'block:ROWSxCOLS', 'element' or 'dense', but got {text!r}; for example 'block:8x1'"
        )
    return Block(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The pattern and the sparsity of one layer; `pattern` None and sparsity 0 is dense."""

    pattern: Block | None
    sparsity: float

    def __post_init__(self) -> None:
        if self.pattern is None and self.sparsity != 0.0:
            raise InputError(f"a dense layer must have sparsity 0, but got {self.sparsity}")
        if not 0.0 <= self.sparsity <= 1.0:
            raise InputError(f"a sparsity must lie in [0, 1], but got {self.sparsity}")

    @property
    def is_dense(self) -> bool:
        return self.pattern is None

    def __str__(self) -> str:
        return "dense" if self.pattern is None else f"{self.pattern}@{self.sparsity:g}"

    def to_json(self) -> dict[str, object]:
        return {"pattern": "dense" if self.pattern is None else str(self.pattern), "sparsity": self.sparsity}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> LayerChoice:
        return cls(parse_pattern(str(value["pattern"])), float(str(value["sparsity"])))


DENSE = LayerChoice(None, 0.0)

Assignment = Mapping[str, LayerChoice]
"""Layer name -> choice. A layer that is not named is dense."""
