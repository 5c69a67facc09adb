"""Comparisons and casts that TVM's own loops compute, with NaN and infinities, against PyTorch."""

import pytest
import torch
from regions import Function, compute
from torch.utils import _pytree as pytree

NAN, INF = float("nan"), float("inf")


def values(rows, cols):
    """Some of all that is no number; a row of each infinity."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, cols, generator=generator)
    for value in (NAN, INF, -INF):
        x[torch.rand(x.shape, generator=generator) < 0.1] = value
    x[0], x[1], x[2] = INF, -INF, NAN
    return x


FUNCTIONS = {
    "extrema": lambda x: (x.amax(0), x.amax(1, keepdim=True), x.amin(0), x.amin(1), x.max(), x.min(), x[:2].max()),
    "places of extrema": lambda x: (x.argmax(0), x.argmax(1), x.argmin(0), x.argmin(-1, keepdim=True), x.argmax()),
    "extrema and places": lambda x: (*x.max(0), *x.min(1), *torch.aminmax(x, dim=1)),
    "of two": lambda x: (torch.maximum(x, x.flip(1)), torch.minimum(x, x.flip(1)), torch.max(x, x[3])),
    "equality": lambda x: (x == x, x != x, x == x.flip(1), x != 0, torch.where(x != x, 0.0, x)),
    "kinds": lambda x: (x.isnan(), x.isinf(), x.isfinite(), torch.nan_to_num(x)),
    "sums": lambda x: (x.nansum(1), x.nanmean(1), x.logsumexp(1), x.log_softmax(0)),
    "bfloat16": lambda x: (y := x.bfloat16(), y.float(), y.amax(1), y.argmax(1), y.isnan(), torch.maximum(y, -y)),
    "float16": lambda x: (y := x.half(), y.amin(0), y.argmin(0), torch.minimum(y, -y).float()),
    "casts": lambda x: ((y := x.bfloat16()), y.float(), y.double(), x.half().bfloat16().float(), x.double().bfloat16()),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_and_infinities_are_compared_and_cast_as_by_pytorch(name):
    for shape in ((5, 7), (6, 32)):  # without and with whole vectors
        model, x = Function(FUNCTIONS[name]), values(*shape)
        for ours, theirs in zip(compute(model, x), pytree.tree_leaves(model(x)), strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_extrema_of_integers_and_bools_are_right():
    model = Function(lambda i: (i.amax(0), i.argmax(1), i.argmin(0), i.min(), (i > 0).amax(1), (i > 0).max(), i != i))
    i = torch.randint(-9, 9, (4, 32), generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(compute(model, i), model(i), strict=True))


def test_the_extremum_of_one_value_is_that_value():
    model = Function(lambda x: (x.max(), x.argmax(), x.amin((), keepdim=True)))
    for value in (1.5, NAN, -INF):
        for ours, theirs in zip(compute(model, torch.tensor(value)), model(torch.tensor(value)), strict=True):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
