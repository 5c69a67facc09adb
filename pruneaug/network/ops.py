"""Ops: what a layer computes, with every dimension that decides its time."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pruneaug.errors import InputError
from pruneaug.sparsity.patterns import NM, Pattern

_LINEAR = re.compile(r"linear-t(\d+)-i(\d+)-o(\d+)")
_CONV2D = re.compile(
    r"conv2d-b(\d+)-i(\d+)-o(\d+)-s(\d+)x(\d+)-k(\d+)x(\d+)-d(\d+)x(\d+)-p(\d+)\.(\d+)\.(\d+)\.(\d+)-st(\d+)x(\d+)-g(\d+)"
)


@dataclass(frozen=True, slots=True)
class LinearOp:
    """`tokens` rows of `in_features` values, each times a weight matrix [out_features, in_features].

    `tokens` is the product of all leading dimensions, batch included.
    """

    tokens: int
    in_features: int
    out_features: int

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense op."""
        return self.tokens * self.in_features * self.out_features

    @property
    def key(self) -> str:
        """A readable identity: equal keys are equal ops. Read back by `parse_op`."""
        return f"linear-t{self.tokens}-i{self.in_features}-o{self.out_features}"


@dataclass(frozen=True, slots=True)
class Conv2dOp:
    """A convolution of an input [batch, in_channels, height, width] with zero padding (top, left, bottom, right)."""

    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_size(self) -> tuple[int, int]:
        """Output (height, width)."""
        top, left, bottom, right = self.padding
        rows = self.height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1
        cols = self.width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1
        return rows // self.stride[0] + 1, cols // self.stride[1] + 1

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.out_channels, self.kernel[0] * self.kernel[1] * self.in_channels // self.groups

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense op (padding counted as work)."""
        rows, cols = self.matrix_shape
        return self.batch * rows * cols * self.out_size[0] * self.out_size[1]

    @property
    def key(self) -> str:
        """A readable identity: equal keys are equal ops. Read back by `parse_op`."""
        return (
            f"conv2d-b{self.batch}-i{self.in_channels}-o{self.out_channels}-s{self.height}x{self.width}"
            f"-k{self.kernel[0]}x{self.kernel[1]}-d{self.dilation[0]}x{self.dilation[1]}"
            f"-p{'.'.join(map(str, self.padding))}-st{self.stride[0]}x{self.stride[1]}-g{self.groups}"
        )


Op = LinearOp | Conv2dOp

_NM_SIZES = 16  # what divides the sizes of all weights that PyTorch's 2:4 product takes


def can_have(op: Op, pattern: Pattern) -> bool:
    """Whether a layer may have the pattern: its weight matrix holds a whole block.

    N:M is for linear layers whose features are multiples of 16, inputs and outputs: nothing multiplies others faster.
    """
    if isinstance(pattern, NM) and not (isinstance(op, LinearOp) and all(n % _NM_SIZES == 0 for n in op.matrix_shape)):
        return False
    return pattern.fits(op.matrix_shape)


def parse_op(key: str) -> Op:
    """The op whose `key` this is. Raises InputError if it is none."""
    if match := _LINEAR.fullmatch(key):
        return LinearOp(*map(int, match.groups()))
    if match := _CONV2D.fullmatch(key):
        b, i, o, h, w, kh, kw, dh, dw, top, left, bottom, right, sh, sw, g = map(int, match.groups())
        return Conv2dOp(b, i, o, h, w, (kh, kw), (sh, sw), (top, left, bottom, right), (dh, dw), g)
    raise InputError(f"an op must read like 'linear-t128-i768-o768' or 'conv2d-b1-...', but got {key!r}")
