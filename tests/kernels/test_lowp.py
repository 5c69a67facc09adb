"""bfloat16 and int8 layers against float64 and integers of the same rounded inputs and weights."""

import math

import pytest
import torch
from float64 import expected, random_layer
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import builder_of

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.lowp.formats import (
    BFLOAT16,
    FORMATS,
    INT8,
    Affine,
    affine_of,
    dequantize,
    format_for,
    quantize,
    quantize_rows,
    values_of,
    words,
)
from pruneaug.kernels.lowp.layers import LowpLayer, Precision, layer_call, lowp_candidates
from pruneaug.kernels.lowp.peak import dot_products
from pruneaug.kernels.lowp.planes import layer_planes, unsupported
from pruneaug.kernels.planes import view
from pruneaug.kernels.variants import Variant
from pruneaug.kernels.weights import NO_CLAMP, RELU, Weights
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms import detect

forms = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
natives = pytest.mark.parametrize("native", [True, False], ids=["native", "generic"])
outputs = pytest.mark.parametrize("rounded", [True, False], ids=["words", "float32"])

VARIANT = Variant(8, 2, 2)
CONVS = {
    "1x1 image": Conv2dOp(1, 6, 10, 1, 1, (1, 1)),
    "1x1 convolution": Conv2dOp(2, 9, 11, 7, 7, (1, 1)),
    "3x3": Conv2dOp(1, 3, 17, 7, 7, (3, 3), padding=(1, 1, 1, 1)),
    "3x3, batch 3": Conv2dOp(3, 7, 13, 9, 31, (3, 3), padding=(1, 1, 1, 1)),
    "asymmetric padding": Conv2dOp(2, 4, 5, 6, 8, (4, 3), padding=(1, 0, 2, 2)),
    "dilation": Conv2dOp(1, 4, 5, 11, 10, (3, 2), padding=(2, 1, 2, 1), dilation=(2, 3)),
}


def skip_without(form, native):
    if native and form.extension not in detect().isa:
        pytest.skip(f"this CPU lacks {form.extension}")


def rounded_layer(form, layer):
    """The layer with the values that the format can hold, float64, and the quantisation of its input."""
    x, matrix, mask, bias = layer
    matrix = torch.where(mask, matrix, 0.0)
    if form is BFLOAT16:
        return (x.bfloat16().double(), matrix.bfloat16().double(), mask, bias), Affine(1.0, 0)
    affine = affine_of(x)
    q, scale = quantize_rows(matrix)
    return (dequantize(quantize(x, affine), affine), q.double() * scale[:, None], mask, bias), affine


def check(op, form, native, rounded, *, variant=VARIANT, density=0.5, clamp=NO_CLAMP, lanes=16, seed=0):
    skip_without(form, native)
    layer = random_layer(op, torch.Generator().manual_seed(seed), density=density)
    held, x_affine = rounded_layer(form, layer)
    want = expected(op, *held, clamp=clamp)
    y_affine = affine_of(want)
    kernel = LowpLayer(
        op, Weights(*layer[1:]), variant, builder_of(lanes), Precision(form, x_affine, y_affine, rounded, native), clamp
    )
    kernel.output.view(torch.int32).fill_(0x7FC07FC0)  # NaN as float32, and two as bfloat16
    kernel(kernel.prepare(layer[0]))
    got = kernel.result()
    assert got.shape == want.shape
    near = 1e-5 * (want.norm() / math.sqrt(want.numel()) + want.abs())
    if rounded and form is BFLOAT16:
        near += 2.0**-8 * want.abs()
    elif rounded:  # half a step of the output, and half a step of the sums, in which the bias is counted
        step = quantize_rows(torch.where(layer[2], layer[1], 0.0))[1].max() * x_affine.scale
        near += (y_affine.scale + step) / 2
    assert ((got - want).abs() <= near).all()
    assert_border(op, kernel.output, form, rounded, y_affine, lanes)


def assert_border(op, output, form, rounded, y_affine, lanes):
    """All of an image's planes but its values is the border, whatever they held before."""
    precision = Precision(form, rounded=rounded)
    _, planes = layer_planes(op, form.per_word, precision.y_per_word, lanes)
    if planes.zero_border:
        inside = torch.zeros(planes.size, dtype=torch.bool)
        view(inside, planes).fill_(True)
        border = output[: planes.size][~inside]
        want = 0 if form is BFLOAT16 or not rounded else y_affine.zero_point
        values = border.view(torch.uint8) if form is INT8 and rounded else border
        assert (values == want).all()


@forms
@natives
@outputs
@pytest.mark.parametrize("tokens", [2, 5, 16, 17, 197])
@pytest.mark.parametrize(("inputs", "features"), [(3, 17), (18, 5), (64, 32)])
def test_linear_layers_of_every_number_of_tokens(form, native, rounded, tokens, inputs, features):
    check(LinearOp(tokens, inputs, features), form, native, rounded, variant=Variant(4, 3, 2), seed=tokens)


@forms
@natives
@outputs
@pytest.mark.parametrize("name", CONVS)
def test_convolutions_of_every_geometry(form, native, rounded, name):
    check(CONVS[name], form, native, rounded, seed=len(name), clamp=RELU)


@forms
@outputs
@pytest.mark.parametrize("variant", [Variant(4, 6, 1), Variant(8, 3, 7), Variant(16, 1, 2), Variant(12, 2, 1)], ids=str)
def test_tiles_that_do_not_divide_the_rows_or_the_positions(form, rounded, variant):
    for op in (LinearOp(197, 19, 23), CONVS["3x3, batch 3"]):
        check(op, form, True, rounded, variant=variant)


@forms
@outputs
def test_a_cpu_of_eight_lanes_computes_them_without_the_instructions(form, rounded):
    check(LinearOp(37, 19, 23), form, False, rounded, lanes=8)
    check(CONVS["3x3"], form, False, rounded, lanes=8)


@forms
@natives
@outputs
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_rows_that_keep_nothing_and_those_that_keep_all(form, native, rounded, density):
    check(LinearOp(33, 24, 40), form, native, rounded, density=density)
    check(CONVS["3x3"], form, native, rounded, density=density)


@forms
@pytest.mark.parametrize("clamp", [RELU, (0.0, 6.0), (-0.5, 0.25)])
def test_a_clamp_holds_for_words_and_float32(form, clamp):
    for rounded in (True, False):
        check(LinearOp(50, 32, 16), form, True, rounded, clamp=clamp, density=1.0)


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        LinearOp, st.integers(2, 70), st.integers(1, 40), st.integers(1, 40)
    ) | st.builds(
        Conv2dOp, st.integers(1, 3), st.integers(1, 9), st.integers(1, 19), st.integers(1, 12), st.integers(1, 12),
        st.sampled_from([(1, 1), (3, 3)]), st.just((1, 1)), st.just((1, 1, 1, 1)),
    ).filter(lambda op: op.kernel == (3, 3) or min(op.height, op.width) > 1),
    st.sampled_from(list(FORMATS.values())), st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 999),
)  # fmt: skip
def test_any_layer(op, form, rounded, density, seed):
    native = form.extension in detect().isa
    if isinstance(op, Conv2dOp) and op.kernel == (1, 1):
        op = Conv2dOp(op.batch, op.in_channels, op.out_channels, op.height, op.width, (1, 1))
    check(op, form, native, rounded, density=density, seed=seed, variant=Variant(4, 2, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8])
def test_words_of_a_single_value_need_no_common_stride(dtype):
    one = torch.full((4, 48), 3, dtype=dtype).as_strided((1, 1, 1, 1), (48, 1, 48, 48))
    word = words(one)
    assert values_of(word.as_strided((1, 1, 1, 1), (48, 1, 48, 48)), dtype, 1).flatten().tolist() == [3]
    small = Conv2dOp(1, 1, 1, 1, 1, (3, 3), (1, 1), (1, 1, 1, 1))
    check(small, BFLOAT16, False, True, density=0.0, variant=Variant(4, 2, 2))


def test_a_bias_far_above_the_weights_is_kept():
    skip_without(INT8, True)
    op = LinearOp(16, 4, 4)
    bias, y_affine = torch.tensor([1.0, -1.0, 0.5, 0.0]), Affine(1 / 100, 100)
    weights = Weights(torch.full((4, 4), 1e-30), bias=bias)
    kernel = LowpLayer(op, weights, Variant(4, 1, 1), builder_of(16), Precision(INT8, Affine(1e-3, 7), y_affine))
    kernel(kernel.prepare(torch.full((16, 4), 0.1)))
    torch.testing.assert_close(kernel.result(), bias.double().expand(16, 4))


def test_int8_sums_of_extreme_values_are_exact():
    skip_without(INT8, True)
    op = LinearOp(16, 4096, 8)
    x = torch.full((16, 4096), 255.0)
    matrix = torch.full((8, 4096), 127.0)
    matrix[1] = -127.0
    precision = Precision(INT8, Affine(1.0, 3), rounded=False)
    kernel = LowpLayer(op, Weights(matrix), Variant(8, 1, 1), builder_of(16), precision)
    kernel(kernel.prepare(torch.full_like(x, 252.0)))
    want = torch.full((16, 8), 252.0 * 127 * 4096)
    want[:, 1] *= -1
    assert torch.equal(kernel.result(), want.double().float().double())


@natives
def test_bfloat16_rounds_to_even_and_keeps_infinities_and_nan(native):
    skip_without(BFLOAT16, native)
    values = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -3.3895e38, math.inf, -math.inf, math.nan, 1 / 3, -0.0])
    op = LinearOp(16, 1, 8)
    weights = Weights(torch.zeros(8, 1), bias=values)
    kernel = LowpLayer(op, weights, Variant(8, 1, 1), builder_of(16), Precision(BFLOAT16, native=native))
    kernel(kernel.prepare(torch.ones(16, 1)))
    got, want = kernel.result(), values.bfloat16().double().expand(16, 8)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_only_words_with_a_kept_weight_are_packed():
    op = LinearOp(16, 16, 8)
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[3, 5] = mask[7, 12:] = True
    for form, columns in ((BFLOAT16, [2, 6, 7]), (INT8, [1, 3])):
        precision = Precision(form)
        x, y = layer_planes(op, form.per_word, form.per_word, 16)
        call = layer_call(op, x, y, Weights(torch.ones(8, 16), mask), Variant(8, 1, 1), 16, precision)
        packed, offsets, indptr = call.constants[:3]
        assert (len(packed), list(indptr)) == (8 * len(columns), [0, len(columns)])
        assert [offset // x.channel_stride for offset in offsets] == columns


def test_words_hold_neighbouring_channels_lowest_first():
    held = torch.tensor([[1, 2, 3, 4, 5]], dtype=torch.uint8)
    assert words(held).tolist() == [[0x04030201, 5]]
    assert values_of(words(held), torch.uint8, 5).tolist() == held.tolist()
    assert words(torch.tensor([[1.0, -2.0]]).bfloat16()).tolist() == [[0xC0003F80 - 2**32]]


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40))
def test_quantisation_is_off_by_half_a_step_and_keeps_zero(values):
    x = torch.tensor(values)
    affine = affine_of(x)
    assert ((dequantize(quantize(x, affine), affine) - x).abs() <= 0.51 * affine.scale + 1e-30).all()
    assert dequantize(quantize(torch.zeros(1), affine), affine) == 0
    q, scale = quantize_rows(x[None])
    assert q.abs().max() <= 127
    assert ((q * scale - x).abs() <= 0.501 * scale).all()


@forms
def test_candidates_make_whole_words(form):
    target = builder_of(16).target
    for op in (LinearOp(128, 768, 768), CONVS["3x3"], CONVS["1x1 image"]):
        found = lowp_candidates(op, 8, 0.9, form, target, 3)
        assert 1 <= len(found) <= 3
        assert all(variant.height % form.per_word == 0 for variant in found)


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (LinearOp(1, 8, 8), "it has only one token"),
        (Conv2dOp(1, 4, 4, 8, 8, (1, 1), groups=2), "it has 2 groups"),
        (Conv2dOp(1, 4, 4, 8, 8, (3, 3), (2, 1), (1, 1, 1, 1)), "its stride is 2x1"),
        (Conv2dOp(1, 4, 4, 8, 8, (1, 1), padding=(0, 2, 0, 2)), "its output is wider than its input"),
    ],
    ids=lambda value: getattr(value, "key", ""),
)
def test_what_these_kernels_do_not_compute_is_refused(op, reason):
    assert unsupported(op, 16) == reason
    with pytest.raises(CompileError, match=f"has no kernel in reduced precision: {reason}; compute it in float32"):
        layer_planes(op, 2, 2, 16)


def test_a_height_that_makes_no_whole_words_is_refused():
    op = LinearOp(16, 8, 8)
    with pytest.raises(CompileError, match="height must be a multiple of 4, the int8 values in a word, but got h2v1s1"):
        layer_call(op, *layer_planes(op, 4, 4, 16), Weights(torch.ones(8, 8)), Variant(2, 1, 1), 16, Precision(INT8))


def test_a_cpu_without_the_instructions_and_a_wrong_name_are_named():
    assert format_for("int8", ("avx2", "avx512f", "avx512_vnni")) is INT8
    with pytest.raises(InputError, match="bfloat16 kernels need a CPU with avx512_bf16, but this one has only avx2"):
        format_for("bfloat16", ("avx2",))
    with pytest.raises(InputError, match=r"must be one of bfloat16, int8, but got 'bfloat'; did you mean 'bfloat16'"):
        format_for("bfloat", ())


@forms
def test_the_peak_counts_dot_products(form):
    skip_without(form, True)
    call = KernelCall("peak", dot_products(form, 1, 2, 16, 3), (), 32)
    y = torch.empty(32, dtype=getattr(torch, form.accumulator))
    ones = words(torch.ones(16, form.per_word, dtype=torch.bfloat16 if form is BFLOAT16 else torch.int8)).reshape(-1)
    builder_of(16).bound(call)(ones.repeat(2), y)
    assert (y == 3 * form.per_word).all()
