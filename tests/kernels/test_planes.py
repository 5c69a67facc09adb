"""Where planes put values: apart from each other, at whole vectors, borders as wide as asked for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.kernels.planes import image_planes, token_planes

LANES = st.sampled_from([4, 8, 16])


def small(low, high):
    return st.integers(low, high)


def indices(planes):
    """Where the value of (image, channel, row, column) lies, by the formula of the class: int [N, C, H, W]."""
    n, c, y, x = np.ogrid[: planes.images, : planes.channels, : planes.rows, : planes.cols]
    return c * planes.channel_stride + n * planes.image_stride + planes.lead + y * planes.pitch + x


def check(planes, lanes):
    at = indices(planes)
    assert len(np.unique(at)) == at.size  # no two values share a place
    assert at.min() >= 0
    assert planes.positions == at[0, 0, -1, -1] - at[0, 0, 0, 0] + 1
    assert planes.lead % lanes == planes.image_stride % lanes == planes.channel_stride % lanes == 0
    assert planes.channel_stride // lanes % 2 == 1  # channels meet in different sets of a cache
    assert planes.channel_stride >= planes.images * planes.image_stride
    # Whole vectors from the first position to behind the last stay within the image.
    assert planes.lead + -(-planes.positions // lanes) * lanes <= planes.image_stride
    assert planes.size == planes.channels * planes.channel_stride > at.max()


@given(small(1, 4), small(1, 5), small(1, 200), LANES)
def test_tokens_are_images_of_one_row_without_a_border_of_zeros(images, channels, tokens, lanes):
    planes = token_planes(images, channels, tokens, lanes)
    check(planes, lanes)
    assert (planes.rows, planes.cols, planes.positions, planes.zero_border) == (1, tokens, tokens, False)


@given(small(1, 4), small(1, 5), small(1, 20), small(1, 20), small(0, 9), small(0, 70), small(0, 70), LANES)
def test_images_have_the_border_that_they_were_asked_for(images, channels, rows, cols, gap, before, after, lanes):
    planes = image_planes(
        images, channels, rows, cols, lanes, pitch=cols + gap, before=before, after=after
    )  # fmt: skip
    check(planes, lanes)
    assert planes.zero_border
    assert planes.lead >= before
    last_vector = planes.lead + -(-planes.positions // lanes) * lanes
    assert planes.image_stride - last_vector >= after
