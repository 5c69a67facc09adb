"""What products promise beside their sums: masks, NaN, clamps, memory, errors; and a layer alone."""

import math

import pytest
import torch
from float64 import expected, output_size, random_layer
from planes_tensors import assert_near
from products_of import check_product
from targets import LANES, builder_of, target_of

from pruneaug.errors import CompileError
from pruneaug.kernels.layers import LayerKernel, layer_calls
from pruneaug.kernels.layouts import Layouts
from pruneaug.kernels.products import conv_product
from pruneaug.kernels.variants import Variant
from pruneaug.kernels.weights import NO_CLAMP, RELU, Epilogue, Weights
from pruneaug.network.ops import Conv2dOp, LinearOp

OPS = [
    LinearOp(1, 20, 32),
    LinearOp(21, 20, 32),
    Conv2dOp(2, 5, 32, 7, 7, (3, 3), padding=(1, 1, 1, 1)),
    Conv2dOp(1, 4, 8, 9, 9, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1), groups=2),
]
VARIANT = Variant(4, 1, 2)
ops = pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
lanes = pytest.mark.parametrize("lanes", LANES)


def layer(op, seed, density=0.5):
    return random_layer(op, torch.Generator().manual_seed(seed), density=density)


@lanes
@ops
def test_a_layer_that_keeps_no_weight_returns_its_bias(lanes, op):
    x, matrix, mask, bias = layer(op, 0, density=0.0)
    want = bias.double().view(-1, *[1] * (len(output_size(op)) - 2)).expand(output_size(op))
    check_product(op, (torch.full_like(x, math.nan), matrix, mask, bias), want, VARIANT, lanes)
    check_product(op, (x, matrix, mask, None), torch.zeros_like(want), VARIANT, lanes, clamp=RELU)


@lanes
@ops
def test_a_removed_weight_never_reaches_the_output(lanes, op):
    x, matrix, mask, bias = layer(op, 1)
    poisoned = torch.where(mask, matrix, math.nan)
    check_product(op, (x, poisoned, mask, bias), expected(op, x, matrix, mask, bias), VARIANT, lanes)


@ops
@pytest.mark.parametrize("clamp", [NO_CLAMP, RELU, (0.0, 6.0), (-1.0, 1.0)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinite_inputs_give_what_pytorch_gives(op, clamp, value):
    x, matrix, mask, bias = layer(op, 2, density=1.0)
    x.view(-1)[x.numel() // 2] = value
    want = expected(op, x, matrix, mask, bias, clamp)
    if math.isnan(value):
        assert want.isnan().any()
    check_product(op, (x, matrix, mask, bias), want, VARIANT, 16, clamp=clamp)


@lanes
@pytest.mark.parametrize("clamp", [RELU, (0.0, 6.0), (-math.inf, 0.1)])
@ops
def test_nan_weights_and_biases_pass_the_clamp(lanes, op, clamp):
    x, matrix, mask, bias = layer(op, 3, density=1.0)
    matrix[0, 0] = bias[1] = math.nan
    want = expected(op, x, matrix, mask, bias, clamp)
    assert want[:, 1].isnan().all()
    check_product(op, (x, matrix, mask, bias), want, VARIANT, lanes, clamp=clamp)


@pytest.mark.parametrize("op", OPS[:3], ids=lambda op: op.key)
def test_nan_and_infinite_residuals_are_added(op):
    x, matrix, mask, bias = layer(op, 4, density=1.0)
    residual = torch.randn(output_size(op))
    residual.view(-1)[::7] = math.nan
    residual.view(-1)[1::7] = math.inf
    want = expected(op, x, matrix, mask, bias, residual=residual)
    check_product(op, (x, matrix, mask, bias), want, VARIANT, 16, residual=residual)


@ops
def test_a_layer_without_a_mask_is_dense(op):
    x, matrix, _, bias = layer(op, 5)
    want = expected(op, x, matrix, torch.ones_like(matrix, dtype=torch.bool), bias)
    check_product(op, (x, matrix, None, bias), want, VARIANT, 16)


@ops
def test_a_layer_alone_computes_from_memory_that_it_prepared(op):
    x, matrix, mask, bias = layer(op, 6)
    kernel = LayerKernel(op, Weights(matrix, mask, bias), VARIANT, builder_of(16), Epilogue(clamp=RELU))
    memory, other = kernel.prepare(x), kernel.prepare(torch.full_like(x, 1e6))
    kernel(memory)
    first = kernel.result()
    kernel(other)
    assert_near(first, expected(op, x, matrix, mask, bias, RELU))
    assert not torch.equal(kernel.result(), first)
    kernel(memory)
    assert torch.equal(kernel.result(), first)


@ops
def test_the_input_the_weights_and_the_mask_stay_as_they_are_and_may_change_afterwards(op):
    tensors = layer(op, 7)
    before = [tensor.clone() for tensor in tensors]
    x, matrix, mask, bias = tensors
    kernel = LayerKernel(op, Weights(matrix, mask, bias), VARIANT, builder_of(16))
    memory = kernel.prepare(x)
    kernel(memory)
    want = kernel.result()
    assert all(torch.equal(*pair) for pair in zip(tensors, before))
    for tensor in tensors:
        tensor.zero_()
    kernel(memory)
    assert torch.equal(kernel.result(), want)  # it owns its weights


def test_a_group_of_rows_in_two_groups_of_a_convolution_is_refused():
    op = Conv2dOp(1, 4, 6, 6, 6, (3, 3), groups=2)
    with pytest.raises(
        CompileError, match=r"variant h2v1s1 must divide the 3 output channels of a group .*-g2; choose"
    ):
        layer_calls(op, Weights(torch.zeros(op.matrix_shape)), Variant(2, 1, 1), target_of(16))


def test_an_activation_of_more_values_than_an_offset_counts_is_refused():
    op = Conv2dOp(1, 40_000, 1, 254, 254, (1, 1))
    with pytest.raises(CompileError, match=r"fewer than 2\*\*31 values, .*; compile it for a smaller batch"):
        layer_calls(op, Weights(torch.zeros(op.matrix_shape)), Variant(1, 1, 1), target_of(16))


def test_an_input_whose_rows_lie_otherwise_than_the_outputs_is_refused():
    op = Conv2dOp(1, 4, 4, 6, 6, (3, 3), padding=(1, 1, 1, 1))
    y = Layouts([op], 16).output(op)
    x = Layouts([Conv2dOp(1, 4, 4, 6, 6, (5, 5), padding=(2, 2, 2, 2))], 16).input(op)
    with pytest.raises(CompileError, match=f"needs rows {y.pitch} apart, but got {x.pitch}"):
        conv_product(op, x, y, Weights(torch.zeros(op.matrix_shape)), VARIANT, target_of(16), Epilogue())
