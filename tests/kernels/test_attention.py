"""Attention of token planes against PyTorch in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from planes_tensors import from_planes, to_planes
from targets import LANES, assert_close, run, target_of

from pruneaug.kernels.attention import attention
from pruneaug.kernels.planes import token_planes

LOWEST = torch.finfo(torch.float32).min


def attend(lanes, q, k, v, heads, scale, mask=None, causal=False, is_input=False):
    """The kernel's result [B, Tq, channels] for q [B, Tq, channels], k and v [B, Tk, channels]."""
    planes = [token_planes(x.shape[0], x.shape[2], x.shape[1], lanes) for x in (q, k, v)]
    y = token_planes(q.shape[0], v.shape[2], q.shape[1], lanes)
    given = None if mask is None else tuple(mask.shape) if is_input else mask.numpy()
    call = attention(*planes, y, heads, scale, target_of(lanes), mask=given, causal=causal)
    inputs = [to_planes(x, p, math.nan) for x, p in zip((q, k, v), planes)]
    return from_planes(run(lanes, call, *inputs, *([mask.reshape(-1)] if is_input else [])), y)


def expected(q, k, v, heads, scale, mask=None, causal=False):
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask.double()
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale).transpose(1, 2).flatten(2)


def tokens(*sizes):
    return [torch.randn(size) for size in sizes]


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "size"),
    [(1, 1, 1, 1), (5, 5, 2, 3), (16, 16, 1, 64), (17, 17, 3, 17), (1, 50, 2, 8), (49, 1, 2, 8), (40, 21, 2, 20)],
)
def test_every_number_of_tokens(lanes, images, queries, keys, heads, size):
    q, k, v = tokens(*((images, count, heads * size) for count in (queries, keys, keys)))
    assert_close(attend(lanes, q, k, v, heads, size**-0.5), expected(q, k, v, heads, size**-0.5))


@pytest.mark.parametrize("lanes", LANES)
def test_the_tokens_of_a_vision_transformer(lanes):
    q, k, v = tokens(*[(1, 197, 128)] * 3)
    assert_close(attend(lanes, q, k, v, 2, 0.125), expected(q, k, v, 2, 0.125))


@pytest.mark.parametrize("lanes", LANES)
def test_values_may_have_another_size_than_keys(lanes):
    q, k, v = tokens((2, 19, 3 * 8), (2, 7, 3 * 8), (2, 7, 3 * 13))
    assert_close(attend(lanes, q, k, v, 3, 0.3), expected(q, k, v, 3, 0.3))


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("is_input", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 17, 33), (1, 1, 17, 33), (4, 1, 1, 33), (1, 3, 17, 33), (2, 3, 17, 33)])
def test_masks_of_every_shape(lanes, is_input, shape):
    q, k, v = tokens((4, 17, 24), (4, 33, 24), (4, 33, 24))
    mask = torch.randn(shape)
    mask[..., ::5] = -math.inf
    mask[..., 1::5] = LOWEST
    want = expected(q, k, v, 3, 0.35, mask.repeat(4 // shape[0], 1, 1, 1))
    assert_close(attend(lanes, q, k, v, 3, 0.35, mask, is_input=is_input), want)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("masked", [False, True])
def test_causal_attention(lanes, masked):
    q, k, v = tokens(*[(2, 33, 16)] * 3)
    mask = torch.randn(2, 1, 1, 33) if masked else None
    hidden = torch.full((33, 33), -math.inf).triu(1) + (0.0 if mask is None else mask)
    assert_close(attend(lanes, q, k, v, 2, 0.35, mask, causal=True), expected(q, k, v, 2, 0.35, hidden))


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("lowest", [-math.inf, LOWEST])
def test_where_all_keys_are_hidden_the_result_is_that_of_pytorch(lanes, lowest):
    q, k, v = tokens(*[(1, 18, 16)] * 3)
    mask = torch.zeros(1, 1, 18, 18)
    mask[:, :, 3] = lowest
    assert_close(attend(lanes, q, k, v, 2, 0.35, mask), expected(q, k, v, 2, 0.35, mask))


@pytest.mark.parametrize("lanes", LANES)
def test_large_scores_do_not_overflow(lanes):
    q, k, v = tokens(*[(1, 17, 16)] * 3)
    got = attend(lanes, q * 1000, k * 1000, v, 2, 1.0)
    assert_close(got, expected(q * 1000, k * 1000, v, 2, 1.0))


@pytest.mark.parametrize("lanes", LANES)
def test_nan_stays_in_the_image_that_has_it(lanes):
    q, k, v = tokens(*[(2, 20, 16)] * 3)
    k[0, 7, 3] = math.nan
    got = attend(lanes, q, k, v, 2, 0.35)
    assert got[0, :, :8].isnan().all()
    assert_close(got[1], expected(q, k, v, 2, 0.35)[1])


def test_shapes_that_do_not_fit_are_refused():
    planes, other = token_planes(2, 16, 9, 16), token_planes(2, 16, 8, 16)
    for args in ((planes, other, planes, planes, 2), (planes, planes, planes, other, 2), (*[planes] * 4, 3)):
        with pytest.raises(ValueError, match="fit"):
            attention(*args, 1.0, target_of(16))
    for shape in ((3, 1, 9, 9), (1, 1, 9, 8), (9, 9)):
        with pytest.raises(ValueError, match="mask"):
            attention(*[planes] * 4, 2, 1.0, target_of(16), mask=shape)
    with pytest.raises(ValueError, match="both"):
        attention(*[planes] * 4, 2, 1.0, target_of(16), mask=(1, 1, 9, 9), causal=True)
