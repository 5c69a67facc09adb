"""What a convolution's offsets read in planes is what PyTorch's convolution reads, and never outside of memory.

The kernel reads, for image n and column k of the weight matrix, the positions from
n * image_stride + offset[k] on, in whole vectors: simulated here on memory of numbered values.
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from planes_tensors import to_planes

from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.layouts import Layouts, channels_of, taps
from pruneaug.kernels.products import conv_product, runs
from pruneaug.kernels.variants import Variant
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import Conv2dOp

LANES = st.sampled_from([4, 8, 16])


def small(low, high):
    return st.integers(low, high)


def pairs(low, high):
    return st.tuples(small(low, high), small(low, high))


def convs(sizes=None):
    """Convolutions without groups."""
    sizes = sizes or small(1, 12)
    return st.builds(
        Conv2dOp, small(1, 3), small(1, 3), small(1, 3), sizes, sizes, pairs(1, 5), pairs(1, 4),
        st.tuples(*[small(0, 4)] * 4), pairs(1, 3),
    ).filter(lambda op: min(op.out_size) >= 1)  # fmt: skip


def numbered(op):
    """An input whose values are 1, 2, 3..., so that a value tells where it was read; 0 is padding."""
    count = op.batch * op.in_channels * op.height * op.width
    return torch.arange(1.0, count + 1).view(op.batch, op.in_channels, op.height, op.width)


def phase_images(op, x):
    """Every stride-th row and column of x, from each phase that some tap reads, as channels behind each other."""
    rows, cols = -(-op.height // op.stride[0]), -(-op.width // op.stride[1])
    parts = []
    for phase_y, phase_x in taps(op).phases:
        part = x[:, :, phase_y :: op.stride[0], phase_x :: op.stride[1]]
        parts.append(F.pad(part, (0, cols - part.shape[3], 0, rows - part.shape[2])))
    return torch.cat(parts, 1)


def read(op, layouts):
    """What the kernel reads for every image, column of the weight matrix and output position: [N, K, H, W].

    Raises IndexError where a vector reaches outside of memory.
    """
    y = layouts.output(op)
    in_place = layouts.reads_in_place(op)
    x = layouts.input(op) if in_place else layouts.phase_images(op)
    memory = to_planes(numbered(op) if in_place else phase_images(op, numbered(op)), x).numpy()
    target = CpuTarget(layouts.lanes, 32, 1)
    call = conv_product(op, x, y, Weights(torch.ones(op.matrix_shape)), Variant(1, 1, 1), target, Epilogue())
    offsets = call.constants[2][: op.matrix_shape[1]]  # those of the first row
    images, positions = runs(y, layouts.lanes)
    at = np.arange(images)[:, None, None] * x.image_stride + offsets[:, None] + np.arange(positions)
    if at.min() < 0:
        raise IndexError(at.min())
    vectors = memory[at]
    rows, cols = np.ogrid[: y.rows, : y.cols]
    return vectors[:, :, rows * y.pitch + cols]


def expected(op):
    """The same by PyTorch: [N, K, H, W], columns in the order (channel, ky, kx)."""
    top, left, bottom, right = op.padding
    padded = F.pad(numbered(op), (left, right, top, bottom))
    columns = F.unfold(padded, op.kernel, op.dilation, 0, op.stride)
    return columns.view(op.batch, -1, *op.out_size).numpy()


def read_in_place(op, layouts):
    """What a kernel with rows as lanes reads, from the input itself: [N, K, H, W]."""
    x, y = layouts.input(op), layouts.output(op)
    memory = to_planes(numbered(op), x).numpy()
    target, variant = CpuTarget(layouts.lanes, 32, 1), Variant(layouts.lanes, 0, 1, positions=1)
    call = conv_product(op, x, y, Weights(torch.ones(op.matrix_shape)), variant, target, Epilogue())
    offsets = call.constants[2][: op.matrix_shape[1]]
    rows, cols = np.ogrid[: y.rows, : y.cols]
    at = np.arange(op.batch)[:, None, None, None] * x.image_stride + offsets[:, None, None]
    at = at + rows * (op.stride[0] * x.pitch) + cols * op.stride[1]
    if at.min() < 0:
        raise IndexError(at.min())
    return memory[at]


def check(op, layouts):
    np.testing.assert_array_equal(read(op, layouts), expected(op))
    np.testing.assert_array_equal(read_in_place(op, layouts), expected(op))


@settings(max_examples=120)
@given(convs(), LANES)
def test_a_convolution_alone_reads_what_pytorchs_reads(op, lanes):
    check(op, Layouts([op], lanes))


@settings(max_examples=50)
@given(st.lists(convs(st.sampled_from([1, 6, 7])), min_size=2, max_size=6), LANES)
def test_convolutions_of_one_network_read_what_pytorchs_read(ops, lanes):
    layouts = Layouts(ops, lanes)
    for op in ops:
        check(op, layouts)


@settings(max_examples=100)
@given(st.lists(convs(st.sampled_from([5, 6, 7])), min_size=1, max_size=5), LANES, pairs(1, 8))
def test_images_of_one_size_lie_alike_whatever_their_channels(ops, lanes, channels):
    layouts = Layouts(ops, lanes)
    for op in ops:
        images = [layouts.image(op.batch, count, *op.out_size) for count in (*channels, op.out_channels)]
        assert len({channels_of(planes, 1) for planes in images}) == 1
        assert layouts.output(op) == images[-1]


@pytest.mark.parametrize(
    ("op", "in_place"),
    [
        (Conv2dOp(1, 2, 2, 7, 7, (1, 1)), True),
        (Conv2dOp(1, 2, 2, 7, 7, (3, 3), padding=(1, 1, 1, 1)), True),
        (Conv2dOp(1, 2, 2, 7, 7, (7, 7), padding=(3, 3, 3, 3)), True),
        (Conv2dOp(1, 2, 2, 7, 7, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)), True),
        (Conv2dOp(1, 2, 2, 1, 1, (1, 1)), True),
        (Conv2dOp(1, 2, 2, 7, 7, (1, 1), stride=(2, 2)), False),
        (Conv2dOp(1, 2, 2, 7, 7, (3, 3)), False),
    ],
)
def test_convolutions_that_keep_the_size_read_in_place_and_those_with_a_stride_do_not(op, in_place):
    assert Layouts([op], 16).reads_in_place(op) == in_place


def test_only_the_phases_that_are_read_are_copied():
    op = Conv2dOp(1, 3, 4, 14, 14, (1, 1), stride=(2, 2))
    assert taps(op).phases == ((0, 0),)
    assert Layouts([op], 16).phase_images(op).channels == 3
    op = Conv2dOp(1, 3, 4, 14, 14, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    assert set(taps(op).phases) == set(itertools.product((0, 1), (0, 1)))
    assert Layouts([op], 16).phase_images(op).channels == 12


def test_a_convolution_of_groups_reads_only_the_channels_of_its_group():
    op = Conv2dOp(2, 6, 4, 5, 5, (3, 3), padding=(1, 1, 1, 1), groups=2)
    layouts = Layouts([op], 16)
    x, y = layouts.input(op), layouts.output(op)
    target = CpuTarget(16, 32, 1)
    call = conv_product(op, x, y, Weights(torch.ones(op.matrix_shape)), Variant(2, 1, 1), target, Epilogue())
    offsets, indptr = call.constants[2:4]  # zeros behind the last offset are only asked for, not read
    first, second = offsets[: indptr[-1]].reshape(2, -1)  # of rows 0 and 1, of rows 2 and 3
    np.testing.assert_array_equal(second - first, 3 * x.channel_stride)
