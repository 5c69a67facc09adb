"""Activations and operations of single values give what PyTorch gives, and keep the zeros between rows."""

import math
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planes_tensors import assert_planes, run, to_planes

from pruneaug.errors import CompileError
from pruneaug.kernels.elementwise import binary, unary
from pruneaug.kernels.planes import image_planes, token_planes

lanes = pytest.mark.parametrize("lanes", [16, 8])
SIZES = [(1, 1, 1, 1), (3, 5, 7, 7), (1, 3, 40, 41), (1, 17, 197), (3, 16, 1), (2, 1, 9)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
OPS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}
ops = pytest.mark.parametrize("op", OPS)
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "sigmoid": torch.sigmoid, "gelu": F.gelu, "tanh": torch.tanh}


def planes_of(size, lanes):
    """Planes of [images, channels, rows, cols] or of [images, channels, tokens]."""
    if len(size) == 3:
        return token_planes(*size, lanes)
    return image_planes(*size, lanes, pitch=size[3] + 1, before=size[3] + 2, after=size[3] + 2)


def random(size, seed=0):
    """A tensor of these planes, away from 0."""
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    x = x + x.sign()
    return x if len(size) == 4 else x.transpose(1, 2).contiguous()


def packed(x, planes):
    return to_planes(x, planes, 0.0 if planes.zero_border else math.nan)


@lanes
@sizes
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [(-math.inf, math.inf), (0.25, 1.0), (-1.0, math.inf)])
def test_an_activation_then_a_clamp(lanes, size, activation, clamp):
    x, planes = random(size), planes_of(size, lanes)
    call = unary(planes, activation, lanes, low=clamp[0], high=clamp[1])
    assert_planes(run(call, lanes, packed(x, planes)), planes, ACTIVATIONS[activation](x.double()).clamp(*clamp))


@lanes
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinities_pass_a_clamp(lanes, value):
    x, planes = random((1, 3, 7, 7)), planes_of((1, 3, 7, 7), lanes)
    x[0, 1, 2:4, 3] = value
    flat = run(unary(planes, "none", lanes, low=0.5, high=6.0), lanes, packed(x, planes))
    assert_planes(flat, planes, x.double().clamp(0.5, 6.0))


@lanes
@sizes
@ops
def test_two_activations(lanes, size, op):
    x, other, planes = random(size), random(size, 1), planes_of(size, lanes)
    flat = run(binary(planes, op, planes, lanes), lanes, packed(x, planes), packed(other, planes))
    assert_planes(flat, planes, OPS[op](x.double(), other.double()))


@lanes
@sizes
@ops
@pytest.mark.parametrize("one", [True, False])
def test_an_activation_and_constants(lanes, size, op, one):
    x, planes = random(size), planes_of(size, lanes)
    constants = random((1, 1 if one else size[1], 1, 1)).view(-1)
    shaped = constants.view(-1, 1, 1) if len(size) == 4 else constants
    flat = run(binary(planes, op, constants.numpy(), lanes), lanes, packed(x, planes))
    assert_planes(flat, planes, OPS[op](x.double(), shaped.double()))


@lanes
@sizes
@ops
def test_a_factor_for_each_image_and_channel(lanes, size, op):
    x, planes = random(size), planes_of(size, lanes)
    factors, others = torch.rand(1, size[0], size[1]) + 0.5, token_planes(1, size[1], size[0], lanes)
    flat = run(binary(planes, op, others, lanes), lanes, packed(x, planes), packed(factors, others))
    shaped = factors[0][:, :, None, None] if len(size) == 4 else factors[0][:, None]
    assert_planes(flat, planes, OPS[op](x.double(), shaped.double()))


@lanes
@pytest.mark.parametrize("op", ["mul", "div"])
@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_constants_that_turn_zero_into_nan_keep_the_border(lanes, op, value):
    x, planes = random((2, 3, 7, 7)), planes_of((2, 3, 7, 7), lanes)
    flat = run(binary(planes, op, np.array([value], np.float32), lanes), lanes, packed(x, planes))
    assert_planes(flat, planes, OPS[op](x.double(), torch.tensor(value).double()))


@lanes
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_operation_then_an_activation_then_a_clamp(lanes, activation):
    size = (2, 5, 7, 7)
    x, other, planes = random(size), random(size, 1), planes_of(size, lanes)
    call = binary(planes, "add", planes, lanes, activation=activation, low=-0.1, high=0.75)
    flat = run(call, lanes, packed(x, planes), packed(other, planes))
    assert_planes(flat, planes, ACTIVATIONS[activation](x.double() + other.double()).clamp(-0.1, 0.75))


def test_operands_of_another_size_are_refused():
    planes = planes_of((2, 5, 7, 7), 16)
    with pytest.raises(CompileError, match=r"needs planes .* report this bug"):
        binary(planes, "add", planes_of((2, 4, 7, 7), 16), 16)
    with pytest.raises(CompileError, match=r"needs 1 or 5 constants, but got \(4,\)"):
        binary(planes, "add", np.zeros(4, np.float32), 16)
