"""Pooling gives what PyTorch gives: clipped windows, padding, ceil_mode, NaN; and zeros between the rows."""

import math

import pytest
import torch
import torch.nn.functional as F
from planes_tensors import assert_near, assert_planes, from_planes, run, to_planes

from pruneaug.kernels.planes import image_planes, token_planes
from pruneaug.kernels.pooling import adaptive_avg_pool, avg_pool, global_pool, max_pool

lanes = pytest.mark.parametrize("lanes", [16, 8])
# size, kernel, stride, padding, dilation
WINDOWS = [
    ((1, 64, 14, 14), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 5, 7, 7), (2, 2), (2, 2), (0, 0), (1, 1)),
    ((1, 3, 20, 37), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((1, 1, 33, 70), (3, 2), (2, 1), (1, 0), (1, 2)),
    ((2, 17, 9, 11), (4, 5), (3, 3), (2, 1), (1, 1)),
    ((1, 2, 8, 40), (2, 3), (1, 2), (1, 1), (3, 2)),
    ((1, 1, 1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    ((1, 2, 1, 40), (1, 40), (1, 1), (0, 0), (1, 1)),
]
ceil = pytest.mark.parametrize("ceil", [False, True])
windows = pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), WINDOWS)


def planes_of(x, lanes, *, gap=1, before=9, after=3):
    return image_planes(*x.shape, lanes, pitch=x.shape[3] + gap, before=before, after=after)


def both_sides(padding):
    return (*padding, *padding)


@lanes
@ceil
@windows
def test_max_pooling(lanes, size, kernel, stride, padding, dilation, ceil):
    x = torch.randn(size) - 2  # a zero of the border would often be the maximum
    want = F.max_pool2d(x.double(), kernel, stride, padding, dilation, ceil)
    planes, out = planes_of(x, lanes), planes_of(want, lanes)
    call = max_pool(planes, out, kernel, stride, both_sides(padding), dilation, lanes)
    assert_planes(run(call, lanes, to_planes(x, planes)), out, want)


@lanes
@pytest.mark.parametrize("gap", [0, 40])
def test_max_pooling_between_planes_without_room(lanes, gap):
    x = torch.randn(3, 3, 5, 24)
    want = F.max_pool2d(x.double(), 3, 2, 1)
    planes = planes_of(x, lanes, gap=gap, before=0, after=0)
    out = planes_of(want, lanes, gap=gap, before=0, after=0)
    call = max_pool(planes, out, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), lanes)
    assert_planes(run(call, lanes, to_planes(x, planes)), out, want)


@lanes
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 17, 18, 34])
def test_nan_and_infinities_pass_max_pooling(lanes, value, position):
    x = torch.randn(1, 2, 6, 35)
    x[:, :, 3, position] = value
    x[0, 1] = -math.inf
    want = F.max_pool2d(x.double(), 3, 2, 1)
    planes, out = planes_of(x, lanes), planes_of(want, lanes)
    call = max_pool(planes, out, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), lanes)
    assert_planes(run(call, lanes, to_planes(x, planes)), out, want)


@lanes
@ceil
@pytest.mark.parametrize(("count_include_pad", "divisor"), [(True, None), (False, None), (True, 7)])
@windows
def test_average_pooling(lanes, size, kernel, stride, padding, dilation, ceil, count_include_pad, divisor):
    x = torch.randn(size) + 1
    want = F.avg_pool2d(x.double(), kernel, stride, padding, ceil, count_include_pad, divisor)
    planes, out = planes_of(x, lanes), planes_of(want, lanes)
    call = avg_pool(planes, out, kernel, stride, both_sides(padding), count_include_pad, divisor, lanes)
    assert_planes(run(call, lanes, to_planes(x, planes)), out, want)


@lanes
@pytest.mark.parametrize("count_include_pad", [True, False])
def test_average_pooling_with_other_padding_on_each_side(lanes, count_include_pad):
    x, (top, left, bottom, right) = torch.randn(2, 3, 7, 19), (0, 1, 2, 0)
    sides = (left, right, top, bottom)
    want = F.avg_pool2d(F.pad(x.double(), sides), 3, 2)
    if not count_include_pad:
        want /= F.avg_pool2d(F.pad(torch.ones_like(x).double(), sides), 3, 2)
    planes, out = planes_of(x, lanes), planes_of(want, lanes)
    call = avg_pool(planes, out, (3, 3), (2, 2), (top, left, bottom, right), count_include_pad, None, lanes)
    assert_planes(run(call, lanes, to_planes(x, planes)), out, want)


@lanes
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 5, 7, 7), (1, 17, 14, 28), (1, 3, 33, 50)])
@pytest.mark.parametrize("output", [(1, 1), (7, 7), (2, 5), (3, 40)])
def test_adaptive_average_pooling_to_any_size(lanes, size, output):
    x = torch.randn(size) + 1
    want = F.adaptive_avg_pool2d(x.double(), output)
    planes, out = planes_of(x, lanes), planes_of(want, lanes)
    assert_planes(run(adaptive_avg_pool(planes, out, lanes), lanes, to_planes(x, planes)), out, want)


@lanes
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 5, 7, 7), (1, 17, 14, 14), (20, 3, 20, 50), (1, 130, 7, 7)])
def test_the_mean_of_an_image_becomes_a_token(lanes, size):
    x = torch.randn(size) + 1
    planes, out = planes_of(x, lanes), token_planes(1, size[1], size[0], lanes)
    got = from_planes(run(global_pool(planes, out, lanes), lanes, to_planes(x, planes)), out)
    assert_near(got, x.double().mean((2, 3))[None])


@lanes
@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 197])
def test_the_mean_of_tokens_does_not_read_the_border(lanes, tokens):
    x = torch.randn(3, tokens, 5)
    planes, out = token_planes(3, 5, tokens, lanes), token_planes(1, 5, 3, lanes)
    got = from_planes(run(global_pool(planes, out, lanes), lanes, to_planes(x, planes, math.nan)), out)
    assert_near(got, x.double().mean(1)[None])
