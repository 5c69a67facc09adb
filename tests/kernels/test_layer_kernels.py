"""What a bound layer promises beside its products: masks, NaN, clamps, memory, errors."""

import math

import pytest
import torch
from float64 import assert_close, expected, random_layer

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.layers import NO_CLAMP, RELU, bind
from pruneaug.kernels.variants import Variant
from pruneaug.network.ops import Conv2dOp, LinearOp

OPS = [
    LinearOp(1, 20, 30),
    LinearOp(21, 20, 30),
    Conv2dOp(2, 5, 30, 7, 7, (3, 3), padding=(1, 1, 1, 1)),
    Conv2dOp(1, 20, 30, 9, 9, (1, 1)),
]
VARIANT = Variant(8, 1, 2)
ops = pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)


@ops
def test_a_layer_that_keeps_no_weight_returns_its_bias(builder, op):
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(0), density=0.0)
    got = bind(op, matrix, mask, bias, VARIANT, builder)(x)
    assert torch.equal(
        got, bias.view(-1, *[1] * (got.dim() - 2)).expand_as(got) if got.dim() == 4 else bias.expand_as(got)
    )
    assert not bind(op, matrix, mask, None, VARIANT, builder, RELU)(x).any()


@ops
def test_a_removed_weight_never_reaches_the_output(builder, op):
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(1))
    poisoned = torch.where(mask, matrix, math.nan)
    got = bind(op, poisoned, mask, bias, VARIANT, builder)(x)
    assert_close(got, expected(op, x, matrix, mask, bias))


@ops
@pytest.mark.parametrize("clamp", [NO_CLAMP, RELU, (0.0, 6.0), (-1.0, 1.0)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinite_inputs_give_what_pytorch_gives(builder, op, clamp, value):
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(2), density=1.0)
    x.view(-1)[x.numel() // 2] = value
    want = expected(op, x, matrix, mask, bias, clamp)
    if math.isnan(value):
        assert want.isnan().any()
    assert_close(bind(op, matrix, mask, bias, VARIANT, builder, clamp)(x), want)


@pytest.mark.parametrize("clamp", [RELU, (0.0, 6.0), (-math.inf, 0.1)])
def test_nan_weights_and_biases_pass_the_clamp(builder, clamp):
    op = OPS[1]
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(3), density=1.0)
    matrix[0, 0] = bias[1] = math.nan
    got = bind(op, matrix, mask, bias, VARIANT, builder, clamp)(x)
    assert got[:, :2].isnan().all()
    assert not got[:, 2:].isnan().any()


@ops
def test_a_result_outlives_later_calls_and_calls_do_not_disturb_each_other(builder, op):
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(4))
    kernel = bind(op, matrix, mask, bias, VARIANT, builder)
    first = kernel(x)
    second = kernel(torch.full_like(x, 1e6))
    assert_close(first, expected(op, x, matrix, mask, bias))
    assert torch.equal(kernel(x), first)
    assert not torch.equal(second, first)


@ops
def test_the_input_the_weights_and_the_mask_stay_as_they_are(builder, op):
    tensors = random_layer(op, torch.Generator().manual_seed(5))
    before = [tensor.clone() for tensor in tensors]
    x, matrix, mask, bias = tensors
    kernel = bind(op, matrix, mask, bias, VARIANT, builder, RELU)
    kernel(x)
    assert all(torch.equal(*pair) for pair in zip(tensors, before))
    want = kernel(x)
    matrix.zero_()
    bias.zero_()
    assert torch.equal(kernel(x), want)  # it owns its weights


@pytest.mark.parametrize("shape", [(2, 3, 7), (6, 7), (1, 2, 1, 3, 7)])
def test_a_linear_layer_keeps_the_leading_dimensions(builder, shape):
    op = LinearOp(6, 7, 9)
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(6))
    got = bind(op, matrix, mask, bias, VARIANT, builder)(x.view(shape))
    assert got.shape == (*shape[:-1], 9)
    assert_close(got.view(6, 9), expected(op, x, matrix, mask, bias))


def test_a_single_token_may_have_no_leading_dimension(builder):
    op = LinearOp(1, 7, 9)
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(7))
    got = bind(op, matrix, mask, bias, VARIANT, builder)(x[0])
    assert_close(got, expected(op, x, matrix, mask, bias)[0])


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_a_single_image_may_have_no_batch_dimension(builder, kernel):
    op = Conv2dOp(1, 4, 5, 6, 7, kernel)
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(8))
    got = bind(op, matrix, mask, bias, VARIANT, builder)(x[0])
    assert_close(got, expected(op, x, matrix, mask, bias)[0])


@pytest.mark.parametrize(
    ("op", "x"),
    [
        (LinearOp(6, 7, 9), torch.zeros(6, 8)),
        (LinearOp(6, 7, 9), torch.zeros(5, 7)),
        (LinearOp(6, 7, 9), torch.zeros(7, 6)),
        (LinearOp(6, 7, 9), torch.zeros(6, 7, dtype=torch.float64)),
        (LinearOp(1, 1, 9), torch.zeros(())),
        (Conv2dOp(2, 4, 5, 6, 7, (3, 3)), torch.zeros(2, 6, 4, 7)),
        (Conv2dOp(2, 4, 5, 6, 7, (3, 3)), torch.zeros(1, 4, 6, 7)),
        (Conv2dOp(2, 4, 5, 6, 7, (3, 3)), torch.zeros(4, 6, 7)),
        (Conv2dOp(1, 4, 5, 6, 7, (3, 3)), torch.zeros(4, 7, 6)),
        (Conv2dOp(2, 4, 5, 6, 7, (3, 3)), torch.zeros(2, 4, 6, 7, dtype=torch.int32)),
        (Conv2dOp(2, 4, 5, 6, 7, (1, 1)), torch.zeros(2, 4, 6, 7, dtype=torch.bfloat16)),
    ],
)
def test_an_input_of_another_shape_or_dtype_is_refused(builder, op, x):
    _, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(9))
    kernel = bind(op, matrix, mask, bias, VARIANT, builder)
    with pytest.raises(InputError, match=f"{op.key} needs a float32 input .* compile it for this input"):
        kernel(x)


def test_a_mask_of_another_shape_or_dtype_is_refused(builder):
    op = LinearOp(6, 7, 9)
    _, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(10))
    for wrong in (mask[:-1], mask.float()):
        with pytest.raises(InputError, match="bool mask of the same shape"):
            bind(op, matrix, wrong, bias, VARIANT, builder)


def test_a_grouped_convolution_is_refused(builder):
    op = Conv2dOp(1, 4, 4, 6, 6, (3, 3), groups=4)
    with pytest.raises(CompileError, match=r"groups == 1 .*-g4; keep this layer dense"):
        bind(op, torch.zeros(4, 9), torch.ones(4, 9, dtype=torch.bool), None, VARIANT, builder)
