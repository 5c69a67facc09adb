"""Softmax of rows against PyTorch in float64."""

import math

import pytest
import torch
from targets import LANES, assert_close, run

from pruneaug.kernels.softmax import softmax


def check(lanes, x):
    y = run(lanes, softmax(*x.shape, lanes), x.view(-1)).view_as(x)
    want = x.double().softmax(-1)
    assert (y.isnan() == want.isnan()).all()
    kept = ~want.isnan()
    assert_close(y[kept], want[kept])


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("cols", [1, 2, 7, 8, 15, 16, 17, 48, 197, 1000])
def test_rows_of_every_length(lanes, rows, cols):
    check(lanes, torch.randn(rows, cols) * 4)


@pytest.mark.parametrize("lanes", LANES)
def test_large_values_do_not_overflow(lanes):
    check(lanes, torch.randn(5, 37) * 1e30)
    check(lanes, torch.randn(5, 37) - 1e4)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("cols", [3, 16, 37])
def test_infinities_and_nan_do_what_they_do_in_pytorch(lanes, special, cols):
    x = torch.randn(4, cols)
    x[0, 0] = x[1, cols - 1] = special
    x[2] = special
    check(lanes, x)
