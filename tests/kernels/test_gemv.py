"""Layers of one token against PyTorch in float64."""

import pytest
import torch
from float64 import expected, random_layer
from hypothesis import given, settings
from hypothesis import strategies as st
from products_of import check_product
from targets import LANES

from pruneaug.kernels.variants import Variant
from pruneaug.kernels.weights import NO_CLAMP, RELU
from pruneaug.network.ops import LinearOp

lanes = pytest.mark.parametrize("lanes", LANES)


def check(inputs, outputs, variant, lanes, *, seed=0, density=0.5, residual=False, **epilogue):
    op = LinearOp(1, inputs, outputs)
    generator = torch.Generator().manual_seed(seed)
    layer = random_layer(op, generator, density=density)
    if residual:
        epilogue["residual"] = torch.randn(1, outputs, generator=generator)
    check_product(op, layer, expected(op, *layer, **epilogue), variant, lanes, **epilogue)


@lanes
@pytest.mark.parametrize("height", [1, 2, 4, 8, 16, 32, 64])
def test_groups_of_every_height(lanes, height):
    for inputs in (1, 3, 8, 17, 197):
        for splits in (1, 2, 3):
            check(inputs, 3 * height, Variant(height, 1, splits), lanes, seed=inputs)


@lanes
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("activation", "height"), [("gelu", 1), ("sigmoid", 4), ("hardswish", 16)])
def test_a_sum_then_a_residual_an_activation_and_a_clamp(lanes, activation, residual, height):
    check(33, 48, Variant(height, 1, 2), lanes, activation=activation, residual=residual, clamp=(-0.1, 0.7))


@settings(max_examples=50)
@given(
    st.integers(1, 300), st.integers(1, 20), st.sampled_from([1, 2, 5, 8]), st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from([NO_CLAMP, RELU, (-0.5, 0.25)]), st.integers(0, 999),
)  # fmt: skip
def test_any_single_token(inputs, groups, splits, density, clamp, seed):
    check(inputs, 4 * groups, Variant(4, 1, splits), 16, seed=seed, density=density, clamp=clamp)
