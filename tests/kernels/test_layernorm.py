"""Norms over channels against PyTorch in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from planes_tensors import border_of, from_planes, to_planes
from targets import LANES, assert_close, run

from pruneaug.kernels.layernorm import layer_norm
from pruneaug.kernels.planes import image_planes, token_planes


def expected(x, weight, bias, eps, rms=False):
    x = x.double()
    if rms:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    return F.layer_norm(x, x.shape[-1:], weight.double(), bias.double(), eps)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("tokens", [1, 5, 16, 17, 197])
@pytest.mark.parametrize("channels", [1, 3, 17, 64])
def test_tokens_are_normalised(lanes, images, tokens, channels):
    x = torch.randn(images, tokens, channels) * 3 + 2
    weight, bias = torch.randn(channels), torch.randn(channels)
    planes = token_planes(images, channels, tokens, lanes)
    call = layer_norm(planes, planes, weight.numpy(), bias.numpy(), 1e-5, lanes)
    got = from_planes(run(lanes, call, to_planes(x, planes, math.nan)), planes)
    assert_close(got, expected(x, weight, bias, 1e-5))


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("rms", [False, True])
def test_a_residual_is_added_first(lanes, rms):
    x, residual = torch.randn(2, 33, 20), torch.randn(2, 33, 20)
    planes = token_planes(2, 20, 33, lanes)
    call = layer_norm(planes, planes, None, None, 1e-6, lanes, residual=True, rms=rms)
    y = run(lanes, call, *(to_planes(tensor, planes, math.nan) for tensor in (x, residual)))
    assert_close(from_planes(y, planes), expected(x + residual, torch.ones(20), torch.zeros(20), 1e-6, rms))


@pytest.mark.parametrize("lanes", LANES)
def test_a_large_mean_costs_no_digits(lanes):
    x = torch.randn(1, 17, 64) + 100
    planes = token_planes(1, 64, 17, lanes)
    call = layer_norm(planes, planes, None, None, 1e-6, lanes)
    y = run(lanes, call, to_planes(x, planes, math.nan))
    assert_close(from_planes(y, planes), expected(x, torch.ones(64), torch.zeros(64), 1e-6))


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("rows", "cols", "pitch"), [(1, 1, 1), (7, 7, 8), (5, 16, 18), (9, 3, 3), (14, 14, 15)])
@pytest.mark.parametrize("images", [1, 3])
def test_images_are_normalised_inside_a_border_of_zeros(lanes, images, rows, cols, pitch):
    x = torch.randn(images, 5, rows, cols)
    weight, bias = torch.randn(5), torch.randn(5)
    planes = image_planes(images, 5, rows, cols, lanes, pitch=pitch, before=pitch + 1, after=pitch + 1)
    wider = image_planes(images, 5, rows, cols, lanes, pitch=pitch, before=3 * pitch, after=pitch)
    for out in (planes, wider):
        call = layer_norm(planes, out, weight.numpy(), bias.numpy(), 1e-5, lanes)
        y = run(lanes, call, to_planes(x, planes))
        assert_close(from_planes(y, out), expected(x.permute(0, 2, 3, 1), weight, bias, 1e-5).permute(0, 3, 1, 2))
        assert (border_of(y, out) == 0).all()


def test_other_positions_are_refused():
    with pytest.raises(ValueError, match="positions"):
        layer_norm(token_planes(1, 4, 8, 16), token_planes(1, 4, 9, 16), None, None, 1e-5, 16)
