"""A dense layer that another library computes, and what a library makes of it to be timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pruneaug.kernels.cold import cold_copies
from pruneaug.kernels.lowp.formats import Affine, dequantize
from pruneaug.network.ops import LinearOp, Op
from pruneaug.sparsity.matrix import weight_from_matrix

_IDENTITY = Affine(1.0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class DenseLayer:
    """A layer to compute: its weight matrix float32 [N, K], bias [N] and input, and for int8 their quantisation.

    `x` is float32 [tokens, in_features] or [batch, channels, height, width]; `threads` is how many a library may use.
    """

    op: Op
    matrix: torch.Tensor
    bias: torch.Tensor
    x: torch.Tensor
    threads: int
    x_affine: Affine = _IDENTITY
    y_affine: Affine = _IDENTITY

    def weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """A weight matrix as libraries take it: [N, K], or [out_channels, channels of a group, height, width]."""
        op = self.op
        if isinstance(op, LinearOp):
            return matrix
        return weight_from_matrix(matrix, (op.out_channels, op.in_channels // op.groups, *op.kernel))

    def channels_last(self) -> torch.Tensor:
        """The input [tokens, in_features] or [batch, height, width, channels]."""
        return (self.x if isinstance(self.op, LinearOp) else self.x.permute(0, 2, 3, 1)).contiguous()

    def channels_first(self, y: torch.Tensor) -> torch.Tensor:
        """An output whose channels are last as [tokens, out_features] or [batch, channels, height, width]."""
        return y if isinstance(self.op, LinearOp) else y.permute(0, 3, 1, 2)

    def read_uint8(self, y: Any) -> torch.Tensor:
        """A quantised output, an array with its channels last."""
        return self.channels_first(dequantize(torch.from_numpy(y), self.y_affine))


@dataclass(frozen=True, slots=True, eq=False)
class PeerCall:
    """A library ready to be timed: `run` computes `layers` layers of the same op, each with weights of its own.

    `read` takes what it returned, as far as that is the layer that was asked for: float [tokens, out_features] or
    [batch, channels, height, width].
    """

    run: Callable[[], Any]
    read: Callable[[Any], torch.Tensor]
    layers: int = 1


def cold_weights(weight: torch.Tensor) -> list[torch.Tensor]:
    """`weight`, and so many others that a library which takes them in turn finds each as far away as in a network.

    The others hold the same values in another order: a library may compute equal layers once.
    """
    copies = min(cold_copies(weight.nbytes), max(1, weight.numel()))
    flat = weight.flatten()
    return [weight, *(flat.roll(shift).view(weight.shape) for shift in range(1, copies))]
