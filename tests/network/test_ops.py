import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruneaug.errors import InputError
from pruneaug.network.ops import Conv2dOp, LinearOp, parse_op

few = st.integers(1, 3)
pairs = st.tuples(few, few)


@given(st.integers(1, 999), st.integers(1, 999), st.integers(1, 999))
def test_a_linear_op_reads_back_from_its_key(tokens: int, inputs: int, outputs: int) -> None:
    op = LinearOp(tokens, inputs, outputs)
    assert parse_op(op.key) == op
    assert op.macs == tokens * inputs * outputs
    assert op.matrix_shape == (outputs, inputs)


@settings(max_examples=60, deadline=None)
@given(few, few, few, pairs, pairs, pairs, pairs, st.tuples(*[st.integers(0, 2)] * 4), few)
def test_a_convolution_op_reads_back_and_knows_its_output(
    batch: int,
    channels: int,
    outputs: int,
    extra: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int, int, int],
    groups: int,
) -> None:
    height, width = extra[0] + 3, extra[1] + 3
    op = Conv2dOp(batch, channels * groups, outputs * groups, height, width, kernel, stride, padding, dilation, groups)
    top, left, bottom, right = padding
    assume(height + top + bottom > dilation[0] * (kernel[0] - 1))
    assume(width + left + right > dilation[1] * (kernel[1] - 1))
    image = torch.nn.functional.pad(torch.zeros(batch, channels * groups, height, width), (left, right, top, bottom))
    conv = torch.nn.Conv2d(channels * groups, outputs * groups, kernel, stride, 0, dilation, groups, bias=False)
    result = conv(image)
    assert parse_op(op.key) == op
    assert op.out_size == tuple(result.shape[2:])
    assert op.macs == result.numel() * conv.weight[0].numel()
    assert op.matrix_shape == (conv.weight.shape[0], conv.weight[0].numel())


@pytest.mark.parametrize("key", ["", "linear", "linear-t1-i2", "linear-t1-i2-o3x", "conv2d-b1", "matmul-t1-i2-o3"])
def test_a_key_of_no_op_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="an op must read like"):
        parse_op(key)
