"""Every shape of the kernel, and every kind of op, against PyTorch in float64."""

import math

import pytest
import torch
from float64 import assert_close, expected, random_layer
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruneaug.kernels.build import Builder, CpuTarget
from pruneaug.kernels.layers import NO_CLAMP, RELU, bind
from pruneaug.kernels.variants import Variant
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms import detect

HEIGHTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16)
LINEAR = LinearOp(tokens=37, in_features=19, out_features=23)
CONV = Conv2dOp(3, 5, 23, 9, 11, (3, 2), stride=(2, 1), padding=(1, 0, 0, 2))

CONVS = {
    "1x1 image": Conv2dOp(1, 6, 10, 1, 1, (1, 1)),
    "1x1 image, batch 3": Conv2dOp(3, 6, 10, 1, 1, (1, 1)),
    "1x1 image, padded 3x3": Conv2dOp(2, 6, 10, 1, 1, (3, 3), padding=(1, 1, 1, 1)),
    "1x1 convolution": Conv2dOp(2, 9, 11, 7, 7, (1, 1)),
    "1x1 convolution, stride 2": Conv2dOp(2, 9, 11, 7, 7, (1, 1), stride=(2, 2)),
    "1x1 convolution, padded": Conv2dOp(1, 9, 11, 7, 7, (1, 1), padding=(2, 1, 0, 3)),
    "7x7 image": Conv2dOp(1, 7, 13, 7, 7, (3, 3), padding=(1, 1, 1, 1)),
    "batch 3": Conv2dOp(3, 7, 13, 7, 7, (3, 3), padding=(1, 1, 1, 1)),
    "stride 2": Conv2dOp(1, 7, 13, 13, 12, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
    "stride 3": Conv2dOp(2, 7, 13, 13, 12, (3, 3), stride=(3, 3), padding=(1, 1, 1, 1)),
    "stride larger than the kernel": Conv2dOp(2, 4, 5, 14, 15, (2, 2), stride=(3, 5)),
    "strides that differ": Conv2dOp(1, 4, 5, 9, 9, (3, 3), stride=(1, 2), padding=(1, 1, 1, 1)),
    "asymmetric padding": Conv2dOp(2, 4, 5, 6, 8, (4, 3), padding=(1, 0, 2, 3)),
    "padding larger than the kernel": Conv2dOp(1, 4, 5, 3, 3, (2, 2), padding=(4, 3, 2, 5)),
    "dilation": Conv2dOp(1, 4, 5, 11, 10, (3, 2), padding=(2, 1, 2, 1), dilation=(2, 3)),
    "dilation and stride": Conv2dOp(2, 4, 5, 11, 10, (3, 3), stride=(2, 3), padding=(2, 2, 2, 2), dilation=(3, 2)),
    "7x7 kernel, stride 2": Conv2dOp(1, 3, 9, 20, 18, (7, 7), stride=(2, 2), padding=(3, 3, 3, 3)),
    "patches": Conv2dOp(1, 3, 20, 16, 16, (4, 4), stride=(4, 4)),
    "one row": Conv2dOp(1, 3, 4, 1, 40, (1, 5), padding=(0, 2, 0, 2)),
    "one column": Conv2dOp(1, 3, 4, 40, 1, (5, 1), padding=(2, 0, 2, 0)),
}


def vectors_that_fit(height, registers):
    return [vectors for vectors in range(1, 13) if height * vectors + min(height, vectors) + 1 <= registers]


def check(op, variant, builder, seed=0, **values):
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(seed), **values)
    assert_close(bind(op, matrix, mask, bias, variant, builder)(x), expected(op, x, matrix, mask, bias))


@pytest.mark.parametrize("height", HEIGHTS)
def test_every_tile_computes_linear_layers_and_convolutions(builder, height):
    for vectors in vectors_that_fit(height, builder.target.registers):
        for splits in (1, 2, 5):
            check(LINEAR, Variant(height, vectors, splits), builder)
            check(CONV, Variant(height, vectors, splits), builder)


@pytest.mark.skipif("avx2" not in detect().isa, reason="this CPU has no AVX2")
@pytest.mark.parametrize("height", [1, 3, 8, 14])
def test_tiles_for_avx2_compute_linear_layers_and_convolutions(height):
    avx2 = Builder(CpuTarget(lanes=8, registers=16, threads=2, mcpu="haswell"))
    for vectors in vectors_that_fit(height, 16)[-2:]:
        check(LINEAR, Variant(height, vectors, 2), avx2)
        check(CONV, Variant(height, vectors, 2), avx2)


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize("variant", [Variant(8, 3, 2), Variant(1, 4, 1)], ids=str)
def test_convolutions_of_every_geometry(builder, name, variant):
    check(CONVS[name], variant, builder, seed=len(name))


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 47, 48, 49, 130])
@pytest.mark.parametrize("variant", [Variant(8, 3, 2), Variant(4, 1, 1)], ids=str)
def test_linear_layers_of_every_number_of_tokens(builder, tokens, variant):
    check(LinearOp(tokens, 33, 50), variant, builder, seed=tokens)


def small(low, high):
    return st.integers(low, high)


def pairs(low, high):
    return st.tuples(small(low, high), small(low, high))


def convs():
    return st.builds(
        Conv2dOp, small(1, 3), small(1, 5), small(1, 19), small(1, 12), small(1, 12), pairs(1, 4), pairs(1, 5),
        st.tuples(*[small(0, 3)] * 4), pairs(1, 3),
    ).filter(lambda op: min(op.out_size) >= 1)  # fmt: skip


CLAMPS = st.sampled_from([NO_CLAMP, RELU, (0.0, 6.0), (-0.5, 0.25), (2.0, 1.0)])
VARIANTS = st.builds(Variant, st.sampled_from([1, 4, 8, 14]), small(1, 2), small(1, 4))
LAYOUTS = st.sampled_from(["contiguous", "channels last", "gaps", "misaligned", "repeated"])


def laid_out(x, layout):
    """The same values in other memory; NaN lies wherever the tensor does not."""
    match layout:
        case "channels last":
            return x.permute(*range(x.dim() - 2), -1, -2).contiguous().permute(*range(x.dim() - 2), -1, -2)
        case "gaps":
            outer = torch.full([size + 3 for size in x.shape], math.nan)
            view = outer[tuple(slice(1, size + 1) for size in x.shape)]
            return view.copy_(x)
        case "misaligned":
            return torch.cat([torch.tensor([math.nan]), x.flatten()])[1:].view(x.shape)
        case "repeated":
            return x[:1].expand_as(x)
    return x


@settings(max_examples=150)
@given(convs(), VARIANTS, CLAMPS, LAYOUTS, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.booleans(), small(0, 999))
def test_any_convolution(builder, op, variant, clamp, layout, density, has_bias, seed):
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(seed), density=density)
    x, bias = laid_out(x, layout), bias if has_bias else None
    kernel = bind(op, matrix, mask, bias, variant, builder, clamp)
    assert_close(kernel(x), expected(op, x, matrix, mask, bias, clamp))


@settings(max_examples=100)
@given(
    small(1, 70), small(1, 40), small(1, 40), VARIANTS, CLAMPS, LAYOUTS, st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.booleans(), small(0, 999),
)  # fmt: skip
def test_any_linear_layer(builder, tokens, inputs, outputs, variant, clamp, layout, density, has_bias, seed):
    op = LinearOp(tokens, inputs, outputs)
    x, matrix, mask, bias = random_layer(op, torch.Generator().manual_seed(seed), density=density)
    x, bias = laid_out(x, layout), bias if has_bias else None
    kernel = bind(op, matrix, mask, bias, variant, builder, clamp)
    assert_close(kernel(x), expected(op, x, matrix, mask, bias, clamp))


@settings(max_examples=50)
@given(convs(), convs(), VARIANTS, small(0, 999))
def test_a_convolution_reads_what_another_returns(builder, first, second, variant, seed):
    rows, cols = first.out_size
    second = Conv2dOp(
        first.batch, first.out_channels, second.out_channels, rows, cols, second.kernel, second.stride,
        second.padding, second.dilation,
    )  # fmt: skip
    assume(min(second.out_size) >= 1)
    generator = torch.Generator().manual_seed(seed)
    x, *layer = random_layer(first, generator)
    _, *next_layer = random_layer(second, generator)
    y = bind(first, *layer, variant, builder)(x)
    want = expected(first, x, *layer)
    got = bind(second, *next_layer, variant, builder)(y)
    scale = want.abs().max().clamp_min(1.0)
    assert_close(got / scale.float(), expected(second, want, *next_layer) / scale)
