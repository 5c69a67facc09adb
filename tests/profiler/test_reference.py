"""The check of a kernel's result against PyTorch in float64, and the masks it is measured with."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.profiler.masks import keep_largest, synthetic_scores
from pruneaug.profiler.reference import Reference
from pruneaug.sparsity.patterns import Block

LINEAR = LinearOp(300, 7, 5)
CONVS = [
    Conv2dOp(3, 4, 5, 20, 11, (3, 2), stride=(2, 1), padding=(1, 0, 2, 3), dilation=(2, 3)),
    Conv2dOp(1, 4, 5, 3, 3, (1, 1)),
    Conv2dOp(2, 3, 4, 9, 9, (2, 2), stride=(3, 4)),
    Conv2dOp(2, 6, 9, 9, 5, (3, 2), stride=(2, 1), padding=(1, 0, 2, 3), groups=3),
    Conv2dOp(1, 4, 8, 5, 5, (3, 3), groups=4),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(op):
    """(reference, weight matrix, bias, true result in float32) of random values."""
    size = (op.tokens, op.in_features) if isinstance(op, LinearOp) else (op.batch, op.in_channels, op.height, op.width)
    x, matrix = torch.randn(size, generator=generator()), torch.randn(op.matrix_shape, generator=generator(1))
    bias = torch.randn(op.matrix_shape[0], generator=generator(2))
    if isinstance(op, LinearOp):
        truth = F.linear(x.double(), matrix.double(), bias.double())
    else:
        top, left, bottom, right = op.padding
        weight = matrix.double().view(op.out_channels, *op.kernel, -1).permute(0, 3, 1, 2)
        x64 = F.pad(x.double(), (left, right, top, bottom))
        truth = F.conv2d(x64, weight, bias.double(), op.stride, 0, op.dilation, op.groups)
    return Reference(op, x, generator(3)), matrix, bias, truth.float().contiguous()


@pytest.mark.parametrize("op", [LINEAR, LinearOp(1, 7, 5), *CONVS], ids=lambda op: op.key)
def test_the_truth_has_no_error_and_anything_else_has(op):
    reference, matrix, bias, truth = layer(op)
    assert reference.relative_error(truth, matrix, bias) < 1e-7
    assert reference.relative_error(truth * 1.01, matrix, bias) == pytest.approx(0.01, rel=1e-3)
    assert reference.relative_error(torch.zeros_like(truth), matrix, bias) == pytest.approx(1.0)
    assert reference.relative_error(truth, matrix, bias + 1) > 0.01
    for corner in (0, -1):  # the first position and the last are always among the samples
        wrong = truth.clone()
        wrong.view(-1)[corner] += 10.0
        assert reference.relative_error(wrong, matrix, bias) > 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_value_that_is_not_finite_makes_the_error_nan_wherever_it_is(value):
    reference, matrix, bias, truth = layer(LINEAR)
    for position in range(0, truth.numel(), 97):
        wrong = truth.clone()
        wrong.view(-1)[position] = value
        assert math.isnan(reference.relative_error(wrong, matrix, bias))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 99))
def test_the_largest_scores_are_kept_and_as_many_as_asked(rows, cols, sparsity, seed):
    scores = torch.rand(rows, cols, generator=generator(seed), dtype=torch.float64)
    keep = keep_largest(scores, sparsity)
    assert keep.sum() == max(1, round((1 - sparsity) * rows * cols))
    if not keep.all():
        assert scores[keep].min() > scores[~keep].max()


def test_zeros_fall_by_row_and_by_column_and_the_same_for_the_same_seed():
    block = Block(1, 1)
    scores = synthetic_scores((200, 300), block, generator())
    assert torch.equal(scores, synthetic_scores((200, 300), block, generator()))
    assert not torch.equal(scores, synthetic_scores((200, 300), block, generator(1)))
    keep = keep_largest(scores, 0.9).double()
    # Independent zeros would give a binomial's spread, sqrt(0.09 / n).
    assert keep.mean(1).std() > 3 * math.sqrt(0.09 / 300)
    assert keep.mean(0).std() > 3 * math.sqrt(0.09 / 200)


def test_scores_have_one_value_a_block():
    assert synthetic_scores((20, 30), Block(8, 7), generator()).shape == (3, 5)
