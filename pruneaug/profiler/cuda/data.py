"""The numbers that a group is measured with, and what must come out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from pruneaug.errors import MeasurementError
from pruneaug.kernels.cuda.formats import FORMATS, TF32, Format
from pruneaug.network.ops import LinearOp, Op
from pruneaug.profiler.cuda.cases import Group
from pruneaug.profiler.masks import mask_of_scores, synthetic_scores
from pruneaug.profiler.op_data import layer_output, layer_weight
from pruneaug.sparsity.masks import block_mask
from pruneaug.sparsity.patterns import TWO_OF_FOUR, parse_pattern

LARGEST_ERRORS: Mapping[str, tuple[float, float]] = {
    "float16": (2e-3, 1e-2),
    "bfloat16": (1e-2, 4e-2),
    "tf32": (2e-3, 1e-2),
    "float32": (2e-5, 2e-4),
}
"""Of all outputs together, norm(difference) / norm(reference), and of each, relative to its size plus the root mean
square of all. Sums that libraries round on the way stay below; a missing tile of columns does not."""


class GroupData:
    """Inputs, weights and mask of a group, rounded to its format, on one device.

    `x` is [tokens, K], or of a convolution [input positions, channels], the positions in the order of [batch, height,
    width]; `matrix` [N, K] with zeros in place, `bias` [N], all in the format's dtype; `mask` [N, K] bool.
    """

    def __init__(self, group: Group, device: torch.device) -> None:
        op, form = group.op, FORMATS[group.dtype]
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> torch.Tensor:
            return rounded(torch.randn(size, generator=generator, device=device), form)

        if isinstance(op, LinearOp):
            self.x = normal(op.tokens, op.in_features)
        else:
            self.x = normal(op.batch * op.height * op.width, op.in_channels)
        self.bias = normal(op.matrix_shape[0])
        block = parse_pattern(group.pattern)
        if block is None:
            self.mask = torch.ones(op.matrix_shape, dtype=torch.bool, device=device)
        else:
            scores = synthetic_scores(op.matrix_shape, block, torch.Generator().manual_seed(0))
            self.mask = mask_of_scores(scores, block, group.sparsity, op.matrix_shape).to(device)
        self.matrix = normal(*op.matrix_shape) * self.mask
        self._op, self._dtype = op, group.dtype
        self._buffer = torch.empty(0, dtype=form.torch_dtype, device=device)
        self._inputs: dict[tuple[bool, int], torch.Tensor] = {}
        self._reference = self._expected(self.matrix)

    def input(self, transposed: bool, stride: int) -> torch.Tensor:
        """`x` with rows of `stride` values, or `x` transposed, filled up with NaN; one for all who ask for it."""
        key = transposed, stride
        if key not in self._inputs:
            x = self.x.t() if transposed else self.x
            self._inputs[key] = F.pad(x, (0, stride - x.shape[1]), value=float("nan")).contiguous()
        return self._inputs[key]

    def buffer(self, size: int) -> torch.Tensor:
        """So many values for an output, filled with NaN; the same memory for all who ask for as many."""
        if len(self._buffer) != size:
            self._buffer = self._buffer.new_empty(size)
        return self._buffer.fill_(float("nan"))

    def relative_error(self, y: torch.Tensor, matrix: torch.Tensor | None = None) -> float:
        """norm(y - reference) / norm(reference) of an output [tokens, N] or [output positions, N].

        `matrix` is the weight matrix if it is not that of the group.

        Raises MeasurementError if an output is missing or not finite, or if one or all are too far from the reference,
        which is computed in float64 from the rounded numbers.
        """
        expected = self._reference if matrix is None else self._expected(matrix)
        difference = (y.double() - expected).abs_()
        together = float(difference.norm() / expected.norm().clamp_min(1e-30))
        scale = expected.square().mean().sqrt()
        each = float((difference / (expected.abs() + scale).clamp_min_(1e-30)).max())
        most_together, most_each = LARGEST_ERRORS[self._dtype]
        if not (together <= most_together and each <= most_each):  # NaN is not
            raise MeasurementError(
                f"outputs in {self._dtype} must differ from float64 by at most {most_together:g} together and "
                f"{most_each:g} each, relative to their size, but differ by {together:g} and {each:g}; please report it"
            )
        return together

    def _expected(self, matrix: torch.Tensor) -> torch.Tensor:
        weight = layer_weight(self._op, matrix.double())
        return by_position(layer_output(self._op, as_input(self._op, self.x.double()), weight, self.bias.double()))


def as_input(op: Op, x: torch.Tensor) -> torch.Tensor:
    """`GroupData.x` as PyTorch's layer takes it; of a convolution a view [batch, channels, height, width]."""
    return x if isinstance(op, LinearOp) else x.view(op.batch, op.height, op.width, -1).permute(0, 3, 1, 2)


def by_position(y: torch.Tensor) -> torch.Tensor:
    """What PyTorch's layer computes, with a row for each output position: [output positions, N]."""
    return y if y.dim() == 2 else y.permute(0, 2, 3, 1).flatten(0, 2)


def rounded(values: torch.Tensor, form: Format) -> torch.Tensor:
    """float32 values as the format holds them, in its dtype; in tf32 float32 whose last 13 bits are zero."""
    if form is TF32:
        return ((values.view(torch.int32) + 4096) & -8192).view(torch.float32)
    return values.to(form.torch_dtype)


def two_of_four(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix [N, K] with the two smallest of each four weights of a row set to zero."""
    return matrix * block_mask(matrix.abs(), TWO_OF_FOUR, TWO_OF_FOUR.sparsity)
