"""What a kernel must compute, at sampled output positions, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pruneaug.network.ops import LinearOp, Op

_SAMPLES = 48


class Reference:
    """The inputs of `_SAMPLES` output positions of one op, corners included: float64 [groups, K, samples]."""

    def __init__(self, op: Op, x: torch.Tensor, generator: torch.Generator) -> None:
        """`x` is float32 [tokens, in_features] or [batch, in_channels, height, width]."""
        self._op = op
        if isinstance(op, LinearOp):
            self._index = _sample((op.tokens,), generator)
            self._inputs = x[self._index[0]].double().t()[None]
            return
        top, left, bottom, right = op.padding
        padded = F.pad(x, (left, right, top, bottom))
        batch, y, col = self._index = _sample((op.batch, *op.out_size), generator)
        ky, kx = torch.arange(op.kernel[0]) * op.dilation[0], torch.arange(op.kernel[1]) * op.dilation[1]
        windows = padded[
            batch[:, None, None],
            :,
            (y * op.stride[0])[:, None, None] + ky[:, None],
            (col * op.stride[1])[:, None, None] + kx,
        ]  # [samples, kh, kw, C]
        by_group = windows.reshape(*windows.shape[:3], op.groups, -1).permute(3, 1, 2, 4, 0)
        self._inputs = by_group.flatten(1, 3).double()  # from [groups, kh, kw, C / groups, samples]

    def relative_error(self, result: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor) -> float:
        """norm(result - reference) / norm(reference) over the sampled positions; NaN if any output is not finite.

        `result` has the op's output shape; `matrix` is the weight matrix [N, K] with zeros in place; `bias` [N].
        """
        if not bool(torch.isfinite(result).all()):
            return float("nan")
        rows = matrix.double().reshape(len(self._inputs), -1, matrix.shape[1])  # [groups, N / groups, K]
        expected = (rows @ self._inputs).flatten(0, 1) + bias.double()[:, None]  # [N, samples]
        if isinstance(self._op, LinearOp):
            got = result[self._index[0]].t()
        else:
            batch, y, col = self._index
            got = result[batch, :, y, col].t()
        return float((got.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def _sample(sizes: tuple[int, ...], generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Indices of random positions, the first and the last among them: one [samples] tensor for each size."""
    total = 1
    for size in sizes:
        total *= size
    if total <= _SAMPLES:
        flat = torch.arange(total)
    else:
        inner = torch.randint(0, total, (_SAMPLES - 2,), generator=generator)
        flat = torch.cat([torch.tensor([0, total - 1]), inner])
    return torch.unravel_index(flat, sizes)
