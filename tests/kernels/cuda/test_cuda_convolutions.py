"""Convolutions of the CUDA kernel, its source run on the CPU, against PyTorch in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from emulate import compile_for_cpu, emulate, needs_gxx, target_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_products import ACTIVATIONS, EPSILON, PLAIN, SM80, array, block_mask, held, rows_of

from pruneaug.errors import CompileError
from pruneaug.kernels.cuda.compiler import cuda_source
from pruneaug.kernels.cuda.convolutions import channel_chunk, conv_product
from pruneaug.kernels.cuda.formats import BFLOAT16, FLOAT16, FLOAT32, TF32
from pruneaug.kernels.cuda.variants import parse_cuda_variant
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import Conv2dOp
from pruneaug.sparsity.matrix import weight_from_matrix, weight_matrix

pytestmark = needs_gxx
VARIANT = "t64n32k32s3w2x1"
ONCE = [(False, False)]


def channels_last(values, stride):
    """[batch, channels, height, width] as positions `stride` values apart; what lies behind the channels is NaN."""
    flat = values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])
    return rows_of(flat, stride, math.nan)


def check(
    op, *, variant=VARIANT, form=FLOAT16, block=(32, 16), density=0.5, epilogue=PLAIN, seed=0, mask=None, bias=True,
    x=None, orders=((False, False), (True, True)), mistake=None,
):  # fmt: skip
    """Run the kernel and compare; `mistake` replaces a text in its source by another."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(op.batch, op.in_channels, op.height, op.width, generator=generator) if x is None else x
    weight = torch.randn(op.out_channels, op.in_channels, *op.kernel, generator=generator)
    offsets = torch.randn(op.out_channels, generator=generator) if bias else None
    out_shape = (op.batch, op.out_channels, *op.out_size)
    residual = torch.randn(out_shape, generator=generator) if epilogue.residual else None
    mask = block_mask(*op.matrix_shape, block, density, generator) if mask is None else mask
    weights = Weights(weight_matrix(weight), mask, offsets)
    tile = parse_cuda_variant(variant)
    call = conv_product(op, weights, block[1], tile, form, target_of(tile), epilogue)

    top, left, bottom, right = op.padding
    kept = torch.where(weight_from_matrix(mask, weight.shape), held(weight, form), 0.0)
    want = F.conv2d(
        F.pad(held(x, form), (left, right, top, bottom)), kept, None if offsets is None else offsets.double(),
        op.stride, dilation=op.dilation,
    )  # fmt: skip
    want = want if residual is None else want + residual.to(form.torch_dtype).double()
    want = ACTIVATIONS[epilogue.activation](want).clamp(*epilogue.clamp)
    assert want.shape == out_shape

    x_array = array(channels_last(x.to(form.torch_dtype), call.scalars.x_stride), form)
    assert len(x_array) == call.x_size
    arguments = {"x": x_array, **call.constants, **call.scalars._asdict()}
    if residual is not None:
        arguments["residual"] = array(channels_last(residual.to(form.torch_dtype), call.scalars.y_stride), form)
    compiled = None
    if mistake:
        source = cuda_source(call.function, SM80)
        assert mistake[0] in source
        compiled = compile_for_cpu(source.replace(*mistake))[:2]
    for backwards, eager in orders:
        y = torch.full((call.y_size,), math.nan, dtype=form.torch_dtype)
        emulate(call.shape, {**arguments, "y": array(y, form)}, backwards=backwards, eager=eager, compiled=compiled)
        got = y.view(-1, call.scalars.y_stride)[:, : op.out_channels].double()
        got = got.reshape(op.batch, *op.out_size, op.out_channels).permute(0, 3, 1, 2)
        near = EPSILON[form.name] * want.abs() + 2e-6 * math.sqrt(op.matrix_shape[1])
        wrong = (got.isnan() != want.isnan()) | ((got - want).abs() > near)
        assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} wrong, by {(got - want).abs().max()}"


OPS = {
    "3x3": Conv2dOp(1, 32, 40, 9, 7, (3, 3), padding=(1, 1, 1, 1)),
    "3x3 without padding": Conv2dOp(2, 16, 32, 6, 5, (3, 3)),
    "1x1": Conv2dOp(3, 24, 33, 5, 3, (1, 1)),
    "1x1 of stride 2": Conv2dOp(2, 32, 32, 9, 8, (1, 1), (2, 2)),
    "1x1 with padding": Conv2dOp(1, 16, 32, 4, 4, (1, 1), padding=(1, 0, 0, 2)),
    "5x5": Conv2dOp(1, 16, 16, 7, 7, (5, 5), padding=(2, 2, 2, 2)),
    "7x7 of stride 2": Conv2dOp(1, 3, 64, 21, 19, (7, 7), (2, 2), (3, 3, 3, 3)),
    "7x7 of an image of one value": Conv2dOp(1, 40, 8, 1, 1, (7, 7), padding=(3, 3, 3, 3)),
    "3x3 of an image of one value, stride 2": Conv2dOp(3, 16, 20, 1, 1, (3, 3), (2, 2), (1, 1, 1, 1)),
    "stride 3 and 2": Conv2dOp(3, 16, 32, 10, 11, (3, 3), (3, 2), (1, 1, 1, 1)),
    "asymmetric": Conv2dOp(2, 16, 32, 6, 8, (2, 3), (2, 1), (0, 1, 1, 0)),
    "padding on one side": Conv2dOp(1, 16, 32, 5, 5, (3, 3), (1, 1), (2, 0, 0, 2)),
    "dilated": Conv2dOp(1, 16, 32, 9, 9, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    "dilated in one direction": Conv2dOp(2, 16, 32, 8, 9, (3, 2), padding=(0, 3, 1, 0), dilation=(1, 3)),
    "channels that are no whole pieces": Conv2dOp(3, 20, 13, 5, 6, (3, 3), padding=(1, 1, 1, 1)),
    "one channel": Conv2dOp(1, 1, 1, 4, 4, (3, 3), padding=(1, 1, 1, 1)),
    "more padding than image": Conv2dOp(1, 8, 8, 2, 2, (3, 3), (2, 2), (4, 5, 4, 5)),
}


@pytest.mark.parametrize("name", OPS)
def test_every_geometry(name):
    check(OPS[name])


@pytest.mark.parametrize("columns", [1, 2, 8, 16, 32, 48, 1000], ids=str)
@pytest.mark.parametrize("channels", [3, 16, 48])
def test_blocks_that_lie_in_a_tap_and_across_taps(channels, columns):
    op = Conv2dOp(1, channels, 40, 6, 5, (3, 3), (2, 1), (1, 1, 0, 1))
    check(op, block=(32, columns), density=0.4, orders=ONCE)


@pytest.mark.parametrize(
    ("variant", "form", "columns"),
    [
        ("t16n64k64s4w1x2", BFLOAT16, 16),
        ("t16n16k16s2w1x1", TF32, 16),
        ("t16n64k16s3w1x4", FLOAT16, 16),  # more threads than pieces to copy
        ("t128n16k64s3w4x1", FLOAT16, 64),
        ("t128n32k32s4w4x1", TF32, 8),
        ("t64n64k32s4w2x2", TF32, 1),
        ("t64n32k64s4w2x2", BFLOAT16, 4),
        (VARIANT, FLOAT32, 16),
    ],
)
def test_variants_and_formats(variant, form, columns):
    parsed = parse_cuda_variant(variant)
    op = Conv2dOp(2, 64, parsed.outputs + 9, 9, 8, (3, 3), padding=(1, 1, 1, 1))
    check(op, variant=variant, form=form, block=(parsed.outputs, columns), density=0.3)


def test_row_groups_that_keep_nothing_one_chunk_and_all():
    op = Conv2dOp(1, 32, 128, 5, 7, (3, 3), padding=(1, 1, 1, 1))
    mask = torch.zeros(op.matrix_shape, dtype=torch.bool)
    mask[32:64, -16:] = True  # of the second group the last chunk
    mask[64:96] = True
    mask[127, 17] = True  # of the last group one weight
    check(op, mask=mask)


def test_a_layer_that_keeps_nothing_is_its_bias():
    op = Conv2dOp(2, 16, 32, 3, 3, (3, 3), (2, 2), (1, 1, 1, 1))
    check(op, density=0.0)


@pytest.mark.parametrize("form", [FLOAT16, TF32], ids=["float16", "tf32"])
def test_residual_activation_and_clamp(form):
    epilogue = Epilogue("gelu", (-0.5, 0.75), residual=True)
    check(OPS["stride 3 and 2"], form=form, epilogue=epilogue, bias=False, orders=[(False, True)])


@pytest.mark.parametrize("columns", [1, 16], ids=["gathered", "copied"])
def test_nan_comes_out_where_it_is_read_and_nowhere_else(columns):
    """Removed blocks, padding and what fills up a tile are zeros; what is kept is multiplied."""
    op = Conv2dOp(2, 32, 32, 6, 6, (3, 3), padding=(1, 1, 1, 1))
    mask = torch.zeros(op.matrix_shape, dtype=torch.bool)
    mask[:, 16:32] = True  # tap (0, 0), channels 16 to 31
    mask[:, 8 * 32 : 8 * 32 + 16] = True  # tap (2, 2), channels 0 to 15
    x = torch.ones(2, 32, 6, 6)
    x[0, 20, 2, 3] = x[1, 3, 0, 0] = x[1, 31, 5, 5] = math.nan
    # A removed weight times NaN is not NaN, unlike a weight of zero: what removed weights read is none.
    reads = [F.pad(x[:, 16:], (1, 1, 1, 1))[:, :, :6, :6], F.pad(x[:, :16], (1, 1, 1, 1))[:, :, 2:, 2:]]
    reached = torch.cat(reads, 1).isnan().any(1)
    assert 0 < reached.sum() < 4
    variant = parse_cuda_variant(VARIANT)
    call = conv_product(op, Weights(torch.ones(op.matrix_shape), mask), columns, variant, FLOAT16, SM80, PLAIN)
    y = torch.zeros(call.y_size, dtype=torch.float16)
    x_array = array(channels_last(x.half(), call.scalars.x_stride), FLOAT16)
    emulate(call.shape, {"x": x_array, "y": array(y, FLOAT16), **call.constants, **call.scalars._asdict()})
    want = torch.cat(reads, 1).sum(1)[..., None].expand(-1, -1, -1, 32)
    torch.testing.assert_close(y.view(2, 6, 6, 32).float(), want, equal_nan=True)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_convolution(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    kernel, dilation = (draw(1, 4), draw(1, 3)), (draw(1, 2), draw(1, 3))
    height, width = (draw(1 + (k - 1) * d, 12) for k, d in zip(kernel, dilation))
    op = Conv2dOp(
        draw(1, 3), draw(1, 40), draw(1, 70), height, width, kernel, (draw(1, 3), draw(1, 3)),
        (draw(0, 3), draw(0, 3), draw(0, 3), draw(0, 3)), dilation,
    )  # fmt: skip
    block = (32, data.draw(st.sampled_from([1, 5, 8, 16, 24, 1000])))
    density = data.draw(st.sampled_from([0.05, 0.3, 1.0]))
    check(op, block=block, density=density, seed=draw(0, 99), orders=[(data.draw(st.booleans()), False)])


MISTAKES = {
    "a stride in place of the other": ("* stride_y", "* stride_x"),
    "a padding in place of the other": ("- top", "- left"),
    "a border in place of the other": ("((uint)width)", "((uint)height)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_addresses_show(mistake):
    op = Conv2dOp(2, 16, 32, 7, 9, (3, 3), (2, 3), (1, 2, 1, 1))
    check(op, orders=ONCE)
    with pytest.raises((AssertionError, RuntimeError), match=r"wrong, by|lies outside of"):
        check(op, orders=ONCE, mistake=MISTAKES[mistake])


def test_a_point_of_each_position_is_a_linear_layer():
    op, weights = Conv2dOp(3, 24, 40, 5, 4, (1, 1)), Weights(torch.ones(40, 24))
    variant = parse_cuda_variant(VARIANT)
    call = conv_product(op, weights, 8, variant, FLOAT16, SM80, PLAIN)
    assert (call.name, call.shape.image, call.scalars.tokens) == ("float16 product", False, 60)
    moved = Conv2dOp(3, 24, 40, 5, 4, (1, 1), (1, 2))
    assert conv_product(moved, weights, 8, variant, FLOAT16, SM80, PLAIN).shape.image


@pytest.mark.parametrize(
    ("channels", "columns", "wanted"),
    [
        (64, 16, 16), (64, 1000, 32), (64, 64, 32), (48, 1000, 16), (100, 1000, 8), (64, 1, 1), (64, 4, 4),
        (3, 1000, 8), (3, 16, 8), (3, 1, 1), (3, 3, 1), (24, 16, 8), (20, 4, 4), (20, 16, 8),
    ],
)  # fmt: skip
def test_chunks_lie_in_a_tap(channels, columns, wanted):
    op = Conv2dOp(1, channels, 32, 8, 8, (3, 3))
    assert channel_chunk(op, columns, parse_cuda_variant(VARIANT), FLOAT16) == wanted


def test_what_the_kernel_does_not_compute_is_refused():
    variant = parse_cuda_variant(VARIANT)

    def product(op, variant=variant, mask=None):
        return conv_product(op, Weights(torch.ones(op.matrix_shape), mask), 16, variant, FLOAT16, SM80, PLAIN)

    for groups in (2, 32):
        with pytest.raises(CompileError, match=rf"of 1 group, but conv2d-b1-i32-.* has {groups}; leave this layer"):
            product(Conv2dOp(1, 32, 32, 8, 8, (3, 3), groups=groups))
    with pytest.raises(CompileError, match=r"fewer than 2\*\*31 values.* needs .*; compile it for a smaller batch"):
        product(Conv2dOp(100_000, 32, 32, 64, 64, (3, 3), padding=(1, 1, 1, 1)))
    with pytest.raises(CompileError, match="bytes of shared memory on sm_80"):
        product(OPS["3x3"], parse_cuda_variant("t128n128k128s3w2x2"))
    with pytest.raises(
        CompileError, match=r"the mask of conv2d-.* must have shape \[40, 288\], but got \[40, 32, 3, 3\]"
    ):
        product(OPS["3x3"], mask=torch.ones(40, 32, 3, 3, dtype=torch.bool))
