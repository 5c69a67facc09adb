"""Every kind of op and every tile of the kernel, against PyTorch in float64."""

from dataclasses import replace

import pytest
import torch
from float64 import expected, output_size, random_layer
from hypothesis import given, settings
from hypothesis import strategies as st
from products_of import check_product
from targets import LANES, target_of

from pruneaug.kernels.layers import layer_calls
from pruneaug.kernels.variants import Variant
from pruneaug.kernels.weights import NO_CLAMP, RELU, Weights
from pruneaug.network.ops import Conv2dOp, LinearOp

lanes = pytest.mark.parametrize("lanes", LANES)
HEIGHTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16)
REGISTERS = {16: 32, 8: 16}
LINEAR = LinearOp(tokens=197, in_features=19, out_features=23)
CONV = Conv2dOp(3, 5, 23, 9, 31, (3, 2), stride=(2, 1), padding=(1, 0, 0, 2))

CONVS = {
    "1x1 image": Conv2dOp(1, 6, 10, 1, 1, (1, 1)),
    "1x1 image, batch 3": Conv2dOp(3, 5, 17, 1, 1, (1, 1)),
    "1x1 image, padded 3x3": Conv2dOp(2, 6, 10, 1, 1, (3, 3), padding=(1, 1, 1, 1)),
    "1x1 convolution": Conv2dOp(2, 9, 11, 7, 7, (1, 1)),
    "1x1 convolution, stride 2": Conv2dOp(2, 9, 11, 7, 7, (1, 1), stride=(2, 2)),
    "1x1 convolution, padded": Conv2dOp(1, 9, 11, 7, 7, (1, 1), padding=(2, 1, 0, 3)),
    "7x7 image": Conv2dOp(1, 3, 17, 7, 7, (3, 3), padding=(1, 1, 1, 1)),
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
    "groups": Conv2dOp(2, 6, 9, 7, 9, (3, 3), padding=(1, 1, 1, 1), groups=3),
    "groups, stride 2, dilation": Conv2dOp(1, 4, 6, 9, 8, (3, 2), (2, 2), (1, 1, 1, 1), (2, 1), groups=2),
    "groups of 1x1": Conv2dOp(3, 10, 15, 5, 7, (1, 1), groups=5),
}
DEPTHWISE = {
    "3x3": Conv2dOp(2, 17, 17, 7, 7, (3, 3), padding=(1, 1, 1, 1), groups=17),
    "7x7": Conv2dOp(1, 5, 5, 9, 8, (7, 7), padding=(3, 3, 3, 3), groups=5),
    "stride 2": Conv2dOp(3, 5, 5, 11, 13, (5, 5), stride=(2, 2), padding=(2, 2, 2, 2), groups=5),
    "stride 3, asymmetric": Conv2dOp(1, 3, 3, 10, 17, (3, 3), stride=(3, 3), padding=(0, 1, 2, 1), groups=3),
    "two channels each": Conv2dOp(1, 5, 10, 7, 7, (3, 3), padding=(1, 1, 1, 1), groups=5),
    "1x1 image": Conv2dOp(2, 8, 8, 1, 1, (1, 1), groups=8),
}


def vectors_that_fit(height, registers):
    return [vectors for vectors in range(1, 13) if height * vectors + min(height, vectors) + 1 <= registers]


def check(op, variant, lanes, *, seed=0, density=0.5, **epilogue):
    generator = torch.Generator().manual_seed(seed)
    x, matrix, mask, bias = random_layer(op, generator, density=density)
    if epilogue.pop("residual", False):
        epilogue["residual"] = torch.randn(output_size(op), generator=generator)
    want = expected(op, x, matrix, mask, bias, **epilogue)
    check_product(op, (x, matrix, mask, bias), want, variant, lanes, **epilogue)


@lanes
@pytest.mark.parametrize("name", CONVS)
def test_convolutions_of_every_geometry(lanes, name):
    op = CONVS[name]
    height = 1 if op.groups > 1 else 4
    check(op, Variant(height, 1, 2), lanes, seed=len(name), clamp=RELU)


@lanes
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_convolutions(lanes, name):
    check(DEPTHWISE[name], Variant(1, 1, 1), lanes, density=0.9, clamp=RELU)


@lanes
@pytest.mark.parametrize("tokens", [2, 5, 16, 17, 49, 197])
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 17), (17, 5), (1, 4)])
def test_linear_layers_of_every_number_of_tokens(lanes, tokens, inputs, outputs):
    check(LinearOp(tokens, inputs, outputs), Variant(4, 1, 2), lanes, seed=tokens)


@lanes
@pytest.mark.parametrize("variant", [Variant(5, 3, 1), Variant(8, 2, 7), Variant(1, 5, 2)], ids=str)
def test_tiles_that_do_not_divide_the_rows_or_the_positions(lanes, variant):
    check(LINEAR, variant, lanes)
    check(CONV, variant, lanes)


@lanes
@pytest.mark.parametrize("name", CONVS)
def test_rows_as_lanes_compute_convolutions_of_every_geometry(lanes, name):
    op = CONVS[name]
    if op.groups > 1:  # a group of rows must lie in one group of channels
        op = replace(op, out_channels=2 * lanes * op.groups)
    for height, positions, splits in ((2 * lanes, 5, 2), (lanes, 14, 1)):
        check(op, Variant(height, 0, splits, positions), lanes, seed=len(name), clamp=RELU)


@lanes
@pytest.mark.parametrize("tokens", [2, 5, 16, 17, 49, 197])
def test_rows_as_lanes_compute_linear_layers(lanes, tokens):
    for outputs, positions in ((lanes, 14), (3 * lanes, 4), (lanes + 1, 6)):
        check(LinearOp(tokens, 7, outputs), Variant(lanes, 0, 2, positions), lanes, seed=tokens)


@lanes
@pytest.mark.parametrize("positions", [1, 3, 14, 28])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 17), (6, 40)])
def test_rows_as_lanes_then_a_residual_an_activation_and_a_clamp(lanes, size, residual, positions):
    op = Conv2dOp(3, 3, 2 * lanes, *size, (3, 3), padding=(1, 1, 1, 1))
    variant = Variant(lanes, 0, 2, positions)
    check(op, variant, lanes, residual=residual, activation="sigmoid", clamp=(-0.1, 0.7))


@pytest.mark.slow
@lanes
@pytest.mark.parametrize("height", HEIGHTS)
def test_every_tile_computes_linear_layers_and_convolutions(lanes, height):
    for vectors in vectors_that_fit(height, REGISTERS[lanes]):
        for op in (LINEAR, CONV):
            check(op, Variant(height, min(vectors, _most_vectors(op, lanes)), 2), lanes)


def _most_vectors(op, lanes):
    """How many vectors the positions of one image are."""
    _, y, _ = layer_calls(op, Weights(torch.zeros(op.matrix_shape)), Variant(1, 1, 1), target_of(lanes))
    return -(-y.positions // lanes)


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
DENSITIES = st.sampled_from([0.0, 0.1, 0.5, 1.0])
SPLITS = st.sampled_from([1, 2, 5])


@settings(max_examples=60)
@given(convs(), SPLITS, CLAMPS, DENSITIES, small(0, 999))
def test_any_convolution(op, splits, clamp, density, seed):
    check(op, Variant(4, 1, splits), 16, seed=seed, density=density, clamp=clamp)


@settings(max_examples=40)
@given(convs(), SPLITS, CLAMPS, DENSITIES, small(1, 28), small(0, 999))
def test_rows_as_lanes_compute_any_convolution(op, splits, clamp, density, positions, seed):
    check(op, Variant(16, 0, splits, positions), 16, seed=seed, density=density, clamp=clamp)


@settings(max_examples=40)
@given(small(2, 70), small(1, 40), small(1, 40), SPLITS, CLAMPS, DENSITIES, small(0, 999))
def test_any_linear_layer(tokens, inputs, outputs, splits, clamp, density, seed):
    check(LinearOp(tokens, inputs, outputs), Variant(4, 1, splits), 16, seed=seed, density=density, clamp=clamp)


@lanes
@pytest.mark.parametrize("activation", ["gelu", "sigmoid"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "op",
    [LinearOp(17, 5, 20), Conv2dOp(3, 3, 20, 7, 7, (3, 3), padding=(1, 1, 1, 1)), Conv2dOp(1, 5, 8, 1, 1, (1, 1))],
    ids=lambda op: op.key,
)
def test_a_product_then_a_residual_an_activation_and_a_clamp(lanes, op, residual, activation):
    check(op, Variant(4, 1, 2), lanes, residual=residual, activation=activation, clamp=(-0.1, 0.7))
