"""Which kernel variants are proposed for an op."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.errors import InputError
from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.layers import layer_calls
from pruneaug.kernels.products import runs
from pruneaug.kernels.variants import Variant, candidates, parse_variant
from pruneaug.kernels.weights import Weights
from pruneaug.network.ops import Conv2dOp, LinearOp

MACHINES = [(4, 16), (4, 32), (8, 16), (16, 32)]  # lanes, registers


def small(low, high):
    return st.integers(low, high)


def linears(tokens):
    return st.builds(LinearOp, tokens, small(1, 2000), small(1, 2000))


def convs():
    pair = st.tuples(small(1, 7), small(1, 7))
    conv = st.builds(
        lambda groups, inputs, outputs, batch, *rest: Conv2dOp(
            batch, groups * inputs, groups * outputs, *rest, groups=groups
        ),
        st.sampled_from([1, 1, 2, 3, 32]), small(1, 64), small(1, 64), small(1, 4), small(1, 60), small(1, 60), pair,
        pair, st.tuples(*[small(0, 4)] * 4),
    )  # fmt: skip
    return conv.filter(lambda op: min(op.out_size) >= 1)


def proposed(op, block_rows, sparsity, machine, threads, most):
    lanes, registers = machine
    found = candidates(op, block_rows, sparsity, lanes=lanes, registers=registers, threads=threads, most=most)
    assert 1 <= len(found) <= most
    assert len(set(found)) == len(found)
    for variant in found:
        assert variant.height <= op.matrix_shape[0]
        assert 1 <= variant.splits <= -(-op.matrix_shape[0] // variant.height)
        if sparsity > 0:
            assert block_rows % variant.height == 0 or variant.height % block_rows == 0
    return found


CHOICES = (small(1, 70), st.floats(0, 1), st.sampled_from(MACHINES), small(1, 64), small(1, 10))


@given(linears(small(2, 300)) | convs(), *CHOICES)
def test_candidates_are_some_that_fit_the_registers_and_the_op(op, block_rows, sparsity, machine, threads, most):
    lanes, registers = machine
    for variant in proposed(op, block_rows, sparsity, machine, threads, most):
        # Accumulators, the operands that the inner loop keeps, and one that changes.
        width = (variant.height // lanes, variant.positions) if variant.positions else (variant.height, variant.vectors)
        assert width[0] * width[1] + min(width) + 1 <= registers
        if isinstance(op, Conv2dOp) and op.groups > 1:
            assert op.out_channels // op.groups % variant.height == 0
        target = CpuTarget(lanes, registers, threads)
        # Weights without a column: only how the positions lie matters here.
        _, y, _ = layer_calls(
            op, Weights(torch.zeros(op.matrix_shape), torch.zeros(op.matrix_shape) > 0), variant, target
        )
        assert variant.vectors * lanes <= runs(y, lanes)[1]


@given(linears(st.just(1)), *CHOICES)
def test_candidates_for_one_token_have_rows_that_are_lanes(op, block_rows, sparsity, machine, threads, most):
    for variant in proposed(op, block_rows, sparsity, machine, threads, most):
        assert variant.vectors == 1
        assert variant.height & (variant.height - 1) == 0
        assert op.out_features % variant.height == 0


def test_a_dense_large_product_gets_a_tile_with_many_accumulators():
    (first, *_) = candidates(LinearOp(512, 512, 512), 1, 0.0, lanes=16, registers=32, threads=2)
    assert first.height * first.vectors >= 16 or first.height // 16 * first.positions >= 16


def test_small_images_get_rows_as_lanes_when_they_are_dense():
    op = Conv2dOp(1, 512, 512, 7, 7, (3, 3), padding=(1, 1, 1, 1))
    (dense, *_) = candidates(op, 1, 0.0, lanes=16, registers=32, threads=2)
    assert (dense.height, dense.positions) == (32, 14)
    assert all(v.positions == 0 for v in candidates(op, 8, 0.9, lanes=16, registers=32, threads=2))


def test_blocks_of_eight_rows_get_tiles_of_eight_rows():
    op = Conv2dOp(1, 128, 128, 28, 28, (3, 3), padding=(1, 1, 1, 1))
    assert all(v.height in (4, 8) for v in candidates(op, 8, 0.9, lanes=16, registers=32, threads=2))


@pytest.mark.parametrize("variant", [Variant(1, 1, 1), Variant(16, 12, 128), Variant(32, 0, 2, positions=14)])
def test_a_variants_name_reads_back(variant):
    assert parse_variant(str(variant)) == variant


@pytest.mark.parametrize(
    "name", ["", "h8v3", "h0v1s1", "h8v0s1", "h8v3s0", "h8v3s1 ", "h-8v3s1", "h8p3v1s1", "analytic"]
)
def test_another_name_is_refused(name):
    with pytest.raises(InputError, match="must read like 'h8v3s1' or 'h32p14s2', but got"):
        parse_variant(name)
