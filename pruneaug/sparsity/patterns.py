"""Patterns: which weights of a weight matrix may be zero together.

A weight matrix has one row per output feature and one column per input: input features for a linear layer,
(ky, kx, input channel) in this order for a convolution. See `pruneaug.sparsity.matrix`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from pruneaug.errors import InputError

_BLOCK = re.compile(r"block:([1-9]\d*)x([1-9]\d*)")
_NM = re.compile(r"nm:(\d+):(\d+)", re.ASCII)


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

    def sparsities(self, asked: Iterable[float]) -> tuple[float, ...]:
        """Those of the asked sparsities that it can have, each once: all."""
        return tuple(dict.fromkeys(asked))


@dataclass(frozen=True, slots=True, order=True)
class NM:
    """N:M: of each `m` neighbouring columns of a row at most `n` are kept.

    Columns are counted in groups from the first; a narrower last group keeps the same share of its columns, rounded up.
    What is kept or removed together is one weight, a block of 1x1.
    """

    n: int
    m: int
    rows: ClassVar[int] = 1
    cols: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise InputError(f"1 <= N < M must hold for a pattern nm:N:M, but got {self}; for example nm:2:4")

    def __str__(self) -> str:
        return f"nm:{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """The one that it has in whole groups."""
        return 1 - self.n / self.m

    def kept(self, width: int) -> int:
        """How many weights of a group of so many columns are kept."""
        return -(-self.n * width // self.m)

    def grid(self, matrix_shape: tuple[int, int]) -> tuple[int, int]:
        """Number of weights along rows and along columns."""
        return matrix_shape

    def fits(self, matrix_shape: tuple[int, int]) -> bool:
        """Whether the columns of a matrix of this shape make whole groups."""
        return matrix_shape[1] % self.m == 0

    def sparsities(self, asked: Iterable[float]) -> tuple[float, ...]:
        """Its own one, whatever is asked."""
        return (self.sparsity,)


Pattern = Block | NM

ELEMENT = Block(1, 1)
TWO_OF_FOUR = NM(2, 4)


def sort_key(pattern: Pattern) -> tuple[bool, Pattern]:
    """Blocks by rows and then columns, and N:M after them."""
    return isinstance(pattern, NM), pattern


def parse_pattern(text: str) -> Pattern | None:
    """Read `"block:8x1"`, `"nm:2:4"`, `"element"` or `"dense"` (None).

    Raises InputError for anything else.
    """
    if text == "dense":
        return None
    if text == "element":
        return ELEMENT
    if match := _NM.fullmatch(text):
        return NM(int(match[1]), int(match[2]))
    if match := _BLOCK.fullmatch(text):
        return Block(int(match[1]), int(match[2]))
    raise InputError(
        f"a pattern must be 'block:ROWSxCOLS', 'nm:N:M', 'element' or 'dense', but got {text!r}; "
        "for example 'block:8x1'"
    )


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The pattern and the sparsity of one layer; `pattern` None and sparsity 0 is dense.

    N:M has its own sparsity; with a lower one a layer is on its way there, as a schedule of pruning makes it.
    """

    pattern: Pattern | None
    sparsity: float

    def __post_init__(self) -> None:
        if self.pattern is None and self.sparsity != 0.0:
            raise InputError(f"a dense layer must have sparsity 0, but got {self.sparsity}")
        if not 0.0 <= self.sparsity <= 1.0:
            raise InputError(f"a sparsity must lie in [0, 1], but got {self.sparsity}")
        if isinstance(self.pattern, NM) and self.sparsity > self.pattern.sparsity:
            raise InputError(
                f"the sparsity of {self.pattern} must be {self.pattern.sparsity:g}, or less on the way there, but got "
                f"{self.sparsity:g}; choose blocks to remove more"
            )

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
