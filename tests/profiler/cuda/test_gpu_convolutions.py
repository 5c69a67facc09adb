"""Convolutions on a GPU: which kernels compute them, in which layout, and against what they are checked."""

import numpy as np
import pytest
import torch
from fake_gpu import emulated, faulty

from pruneaug.kernels.cuda.formats import FORMATS
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.shapes import parse_shape
from pruneaug.kernels.weights import Weights
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.profiler.cuda.calls import library_calls, packed
from pruneaug.profiler.cuda.cases import NETWORK_LAYOUTS, TORCH, Group, Subject, has_kernels, subjects_of
from pruneaug.profiler.cuda.data import GroupData
from pruneaug.profiler.cuda.measure import measure_group
from pruneaug.profiler.cuda.records import GpuRecord

POINTWISE = Conv2dOp(2, 24, 32, 5, 4, (1, 1))
STRIDED = Conv2dOp(1, 16, 16, 6, 5, (3, 3), (2, 1), (1, 1, 1, 1))
UNEVEN = Conv2dOp(2, 12, 16, 7, 6, (3, 2), (2, 2), (0, 1, 2, 0), (2, 1))
GROUPED = Conv2dOp(1, 8, 16, 5, 5, (3, 3), padding=(1, 1, 1, 1), groups=2)
OPS = [POINTWISE, STRIDED, UNEVEN, GROUPED]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("with_fakes")


def convolved(op, x, matrix, bias):
    """Position by position: x [batch * height * width, channels] -> [output positions, N]."""
    images = x.reshape(op.batch, op.height, op.width, op.in_channels)
    top, left, bottom, right = op.padding
    images = np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows, per_group = op.out_channels // op.groups, op.in_channels // op.groups
    found = []
    for image in images:
        for y in range(op.out_size[0]):
            for col in range(op.out_size[1]):
                down = y * op.stride[0] + np.arange(op.kernel[0]) * op.dilation[0]
                right = col * op.stride[1] + np.arange(op.kernel[1]) * op.dilation[1]
                window = image[np.ix_(down, right)]  # [kh, kw, channels]
                parts = [
                    matrix[g * rows : (g + 1) * rows] @ window[..., g * per_group : (g + 1) * per_group].reshape(-1)
                    for g in range(op.groups)
                ]
                found.append(np.concatenate(parts) + bias)
    return np.stack(found)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
@pytest.mark.parametrize("dtype", FORMATS)
def test_the_reference_is_the_convolution_of_the_rounded_numbers(op, dtype):
    data = GroupData(Group(op, dtype, "dense", 0.0), CPU)
    y = convolved(op, *(values.double().numpy() for values in (data.x, data.matrix, data.bias)))
    right = torch.from_numpy(y)
    assert data.relative_error(right) < 1e-12
    right[-1, 0] += 10 * right.square().mean().sqrt()
    with pytest.raises(Exception, match="must differ from float64 by at most"):
        data.relative_error(right)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
def test_the_library_gets_images_and_weights_with_their_channels_last(op, monkeypatch):
    seen = []
    conv2d = torch.nn.functional.conv2d

    def watched(x, weight, *others):
        seen.append((x, weight))
        return conv2d(x, weight, *others)

    data, device = GroupData(Group(op, "float32", "dense", 0.0), CPU), faulty()
    found = library_calls(Group(op, "float32", "dense", 0.0), Subject(TORCH), data, device)
    monkeypatch.setattr("torch.nn.functional.conv2d", watched)
    found.calls[0]()
    assert found.relative_error(data) < 1e-5
    ((x, weight),) = seen
    assert all(values.is_contiguous(memory_format=torch.channels_last) for values in (x, weight))
    assert found.result().shape == (op.batch * op.out_size[0] * op.out_size[1], op.out_channels)
    found.forget()
    assert bool(found.result().isnan().all())


@pytest.mark.parametrize("op", [POINTWISE, STRIDED, UNEVEN, LinearOp(33, 48, 80)], ids=lambda op: op.key)
@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
@pytest.mark.parametrize("pattern", ["dense", "block:16x8", "block:16x4", "block:16x1"])
def test_the_kernels_that_are_compiled_are_those_that_the_layer_calls(op, dtype, pattern):
    group = Group(op, dtype, pattern, 0.0 if pattern == "dense" else 0.5)
    data = GroupData(group, CPU)
    subjects = subjects_of(group, [], NETWORK_LAYOUTS)
    assert subjects
    for subject in subjects:
        call = packed(group, subject, Weights(data.matrix, data.mask, data.bias), "sm_90a")
        assert call.shape.key == subject.variant
        assert call.shape.layout == "rows"


def test_a_convolution_of_several_groups_is_left_to_the_library():
    group = Group(GROUPED, "float16", "dense", 0.0)
    assert not has_kernels(GROUPED)
    assert [str(subject) for subject in subjects_of(group, ["torch", "torch-2:4"])] == ["torch"]


@pytest.mark.slow
@pytest.mark.parametrize(("op", "pattern"), [(STRIDED, "block:16x16"), (POINTWISE, "block:16x8")])
def test_kernels_of_convolutions_compute_them_in_turns_with_torch(tmp_path, op, pattern):
    device, folder = emulated(), ProgramFolder(tmp_path)
    from fake_driver import fake_program

    group = Group(op, "bfloat16", pattern, 0.5)
    ours = subjects_of(group, [], NETWORK_LAYOUTS)[:2]
    subjects = [*ours, Subject(TORCH)]
    for subject in ours:
        folder.write(fake_program(parse_shape(subject.variant)))
    steps = measure_group(group, subjects, device, folder, budget_s=0.0)
    records = [step for step in steps if isinstance(step, GpuRecord)]
    assert [(record.subject, record.error) for record in records] == [(subject, None) for subject in subjects]
    assert all(0 < record.max_relative_error < 4e-3 for record in records)
