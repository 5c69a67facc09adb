"""Products of two activations against PyTorch in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import LANES, assert_close, run, target_of

from pruneaug.kernels.matmul import matmul

SIZES = [(1, 1, 1), (1, 17, 3), (5, 7, 16), (16, 16, 16), (17, 33, 5), (50, 64, 31), (3, 197, 64), (130, 2, 9)]


def check(lanes, batch, m, n, k, transposed_a=False, transposed_b=False, shared_a=False, shared_b=False):
    a, b = torch.randn(1 if shared_a else batch, m, k), torch.randn(1 if shared_b else batch, k, n)
    call = matmul(
        batch, m, n, k, target_of(lanes),
        transposed_a=transposed_a, transposed_b=transposed_b, shared_a=shared_a, shared_b=shared_b,
    )  # fmt: skip
    x = a.mT if transposed_a else a
    w = b.mT if transposed_b else b
    y = run(lanes, call, x.contiguous().view(-1), w.contiguous().view(-1))
    assert_close(y.view(batch, m, n), a.double() @ b.double())


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_products_of_every_size(lanes, m, n, k):
    check(lanes, 1, m, n, k)
    check(lanes, 3, m, n, k)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("transposed_a", [False, True])
@pytest.mark.parametrize("transposed_b", [False, True])
@pytest.mark.parametrize(("shared_a", "shared_b"), [(False, False), (True, False), (False, True)])
def test_transposed_and_shared_operands(lanes, transposed_a, transposed_b, shared_a, shared_b):
    for m, n, k in ((7, 5, 3), (19, 37, 33)):
        check(lanes, 3, m, n, k, transposed_a, transposed_b, shared_a, shared_b)


@pytest.mark.parametrize("lanes", LANES)
def test_a_product_of_many_tasks(lanes):
    check(lanes, 1, 211, 300, 40)
    check(lanes, 12, 40, 100, 40, transposed_b=True)


SIZE = st.integers(1, 40)


@settings(max_examples=25)
@given(st.integers(1, 3), SIZE, SIZE, SIZE, st.booleans(), st.booleans())
def test_any_product(batch, m, n, k, transposed_a, transposed_b):
    check(16, batch, m, n, k, transposed_a, transposed_b)
