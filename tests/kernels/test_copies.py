"""Copies move every value to where it belongs, fill borders with zeros and read nothing outside their source."""

import math

import pytest
import torch
from planes_tensors import assert_planes, border_of, from_planes, run, to_planes

from pruneaug.kernels.copies import (
    concat_channels,
    image_to_tokens,
    phase_copy,
    to_plain_image,
    to_plain_tokens,
    tokens_from_plain,
)
from pruneaug.kernels.planes import image_planes, token_planes

lanes = pytest.mark.parametrize("lanes", [16, 8])
SIZES = [(1, 1, 1, 1), (3, 5, 7, 7), (1, 3, 40, 41), (2, 17, 1, 33), (1, 1, 33, 2), (1, 2, 16, 64)]
TOKENS = [(1, 1, 1), (1, 5, 17), (3, 16, 16), (1, 17, 33), (2, 197, 3), (1, 33, 768), (5, 1, 8)]


def phase_images(x, phases, stride, rows, cols):
    """Slices of x, behind each other as channels, in zeros."""
    images, channels = x.shape[:2]
    out = torch.zeros(images, len(phases) * channels, rows, cols)
    for f, (y0, x0) in enumerate(phases):
        part = x[:, :, y0 :: stride[0], x0 :: stride[1]][:, :, :rows, :cols]
        out[:, f * channels : (f + 1) * channels, : part.shape[2], : part.shape[3]] = part
    return out


@lanes
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 3), (2, 1), (1, 2)])
def test_a_phase_image_is_a_slice_of_the_source(lanes, plain, size, stride):
    x = torch.randn(size)
    phases = tuple((y, x) for y in range(stride[0]) for x in range(stride[1]))
    rows, cols = -(-size[2] // stride[0]), -(-size[3] // stride[1])
    out = image_planes(size[0], size[1] * len(phases), rows, cols, lanes, pitch=cols + 2, before=cols + 3, after=5)
    planes = image_planes(*size, lanes, pitch=size[3] + 1, before=size[3] + 2, after=0)
    call = phase_copy(size if plain else planes, out, phases, stride, lanes)
    flat = run(call, lanes, x.reshape(-1) if plain else to_planes(x, planes))
    assert torch.equal(from_planes(flat, out), phase_images(x, phases, stride, rows, cols))
    assert not border_of(flat, out).any()


@lanes
@pytest.mark.parametrize("shape", [(5, 9), (20, 40)])
def test_some_phases_may_be_left_out_and_the_phase_image_larger_or_smaller_than_the_source(lanes, shape):
    x, phases, stride = torch.randn(2, 3, 11, 37), ((0, 1), (3, 0), (2, 1)), (4, 2)
    out = image_planes(2, 9, *shape, lanes, pitch=shape[1] + 17, before=0, after=0)
    flat = run(phase_copy((2, 3, 11, 37), out, phases, stride, lanes), lanes, x.reshape(-1))
    assert_planes(flat, out, phase_images(x, phases, stride, *shape).double())


@lanes
def test_a_phase_that_the_source_does_not_have_is_zero(lanes):
    out = image_planes(1, 4, 1, 1, lanes, pitch=1, before=0, after=0)
    phases = ((0, 0), (0, 1), (1, 0), (1, 1))
    flat = run(phase_copy((1, 1, 1, 1), out, phases, (2, 2), lanes), lanes, torch.ones(1))
    assert from_planes(flat, out).view(-1).tolist() == [1, 0, 0, 0]


@lanes
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gap", [0, 1, 20])
def test_image_planes_become_a_plain_tensor(lanes, size, gap):
    x = torch.randn(size)
    planes = image_planes(*size, lanes, pitch=size[3] + gap, before=0, after=0)
    assert torch.equal(run(to_plain_image(planes, lanes), lanes, to_planes(x, planes)).view(size), x)


@lanes
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gap", [0, 1])
def test_an_images_positions_become_tokens(lanes, size, gap):
    x = torch.randn(size)
    planes = image_planes(*size, lanes, pitch=size[3] + gap, before=3, after=0)
    out = token_planes(size[0], size[1], size[2] * size[3], lanes)
    flat = run(image_to_tokens(planes, out, lanes), lanes, to_planes(x, planes))
    assert torch.equal(from_planes(flat, out), x.flatten(2).transpose(1, 2))


@lanes
@pytest.mark.parametrize(("images", "tokens", "channels"), TOKENS)
def test_token_planes_become_a_plain_tensor_and_it_token_planes(lanes, images, tokens, channels):
    x = torch.randn(images, tokens, channels)
    planes = token_planes(images, channels, tokens, lanes)
    got = run(to_plain_tokens(planes, lanes), lanes, to_planes(x, planes, math.nan))
    assert torch.equal(got.view(x.shape), x)
    assert torch.equal(from_planes(run(tokens_from_plain(planes, lanes), lanes, x.reshape(-1)), planes), x)


@lanes
@pytest.mark.parametrize("channels", [(1, 1), (3, 17, 5), (64, 32)])
def test_channels_are_joined_in_order(lanes, channels):
    xs = [torch.randn(2, c, 9, 11) for c in channels]
    sources = tuple(image_planes(2, c, 9, 11, lanes, pitch=12, before=13, after=13) for c in channels)
    out = image_planes(2, sum(channels), 9, 11, lanes, pitch=12, before=13, after=13)
    flat = run(concat_channels(sources, out, lanes), lanes, *map(to_planes, xs, sources))
    assert_planes(flat, out, torch.cat(xs, dim=1).double())
