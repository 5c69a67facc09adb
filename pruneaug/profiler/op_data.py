"""The numbers that one op is measured with."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pruneaug.network.ops import LinearOp, Op
from pruneaug.profiler.masks import mask_of_scores, synthetic_scores, weight_shape
from pruneaug.profiler.reference import Reference
from pruneaug.sparsity.matrix import weight_from_matrix
from pruneaug.sparsity.patterns import Pattern


class OpData:
    """The input, the weights, the masks and the reference of one op, float32 whatever computes it.

    `matrix` is [N, K], `bias` [N], `x` [tokens, in_features] or [batch, channels, height, width].
    """

    def __init__(self, op: Op) -> None:
        self.op = op
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(op.matrix_shape, generator=generator)
        self.bias = torch.randn(op.matrix_shape[0], generator=generator)
        size = (
            (op.tokens, op.in_features) if isinstance(op, LinearOp) else (op.batch, op.in_channels, op.height, op.width)
        )
        self.x = torch.randn(size, generator=generator)
        self._reference = Reference(op, self.x, generator)
        self._scores: dict[tuple[Pattern, int], torch.Tensor] = {}

    def mask(self, block: Pattern | None, sparsity: float, seed: int) -> torch.Tensor:
        """A bool mask [N, K] of the pattern, from the same scores for every sparsity.

        Safe to use from several threads.
        """
        shape = self.op.matrix_shape
        if block is None:
            return torch.ones(shape, dtype=torch.bool)
        scores = self._scores.get((block, seed))
        if scores is None:
            scores = synthetic_scores(shape, block, torch.Generator().manual_seed(seed))
            # Cells come grouped by pattern: one pattern's scores are enough to keep.
            kept = {key: value for key, value in self._scores.items() if key[0] == block}
            self._scores = kept | {(block, seed): scores}
        return mask_of_scores(scores, block, sparsity, shape)

    def output(self, mask: torch.Tensor) -> torch.Tensor:
        """The op's output under a mask, as PyTorch computes it."""
        return layer_output(self.op, self.x, layer_weight(self.op, self.matrix * mask), self.bias)

    def relative_error(self, result: torch.Tensor, mask: torch.Tensor) -> float:
        """Of a result under a mask, against float64 (see `Reference`)."""
        return self._reference.relative_error(result, self.matrix * mask, self.bias)


def layer_weight(op: Op, matrix: torch.Tensor) -> torch.Tensor:
    """A weight matrix [N, K] as the weight of PyTorch's layer."""
    return weight_from_matrix(matrix, weight_shape(op))


def layer_output(op: Op, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What PyTorch computes in the dtype of these, from a weight as `layer_weight` makes it.

    `x` is [tokens, in_features] or [batch, channels, height, width], in any order in memory.
    """
    if isinstance(op, LinearOp):
        return F.linear(x, weight, bias)
    top, left, bottom, right = op.padding
    if (top, left) == (bottom, right):
        return F.conv2d(x, weight, bias, op.stride, (top, left), op.dilation, op.groups)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, op.stride, 0, op.dilation, op.groups)
