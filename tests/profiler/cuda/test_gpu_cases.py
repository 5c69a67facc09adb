"""What takes turns with what, and the numbers that it computes with."""

import pytest
import torch

from pruneaug.errors import MeasurementError
from pruneaug.kernels.cuda.formats import FORMATS
from pruneaug.kernels.cuda.shapes import parse_shape
from pruneaug.network.ops import LinearOp
from pruneaug.profiler.cuda.cases import Group, Subject, groups_of, layout_of, subjects_of
from pruneaug.profiler.cuda.data import GroupData, rounded, two_of_four

OP = LinearOp(33, 48, 80)
CPU = torch.device("cpu")


def test_groups_are_dense_first_then_each_pattern_that_fits():
    found = groups_of([OP], ["float16", "tf32"], ["block:16x16", "block:128x1"], [0.5, 0.9])
    assert [(group.dtype, group.pattern, group.sparsity) for group in found] == [
        (dtype, *rest) for dtype in ("float16", "tf32")
        for rest in (("dense", 0.0), ("block:16x16", 0.5), ("block:16x16", 0.9))
    ]  # fmt: skip
    assert all(Group.from_json(group.to_json()) == group for group in found)


@pytest.mark.parametrize(
    ("dtype", "pattern", "layouts", "chunks", "others"),
    [
        ("bfloat16", "dense", {"rows", "columns"}, {32, 64}, ["torch", "torch-2:4"]),
        ("bfloat16", "block:64x1", {"rows", "columns"}, {1}, ["torch"]),
        ("tf32", "dense", {"rows"}, {16, 32}, ["torch"]),
        ("tf32", "block:16x16", {"rows"}, {16}, ["torch"]),
    ],
)
def test_subjects_are_our_tiles_in_each_layout_and_the_libraries(dtype, pattern, layouts, chunks, others):
    group = Group(LinearOp(4096, 512, 512), dtype, pattern, 0.0 if pattern == "dense" else 0.5)
    subjects = subjects_of(group, ["torch", "torch-2:4"])
    ours = [subject for subject in subjects if subject.variant]
    assert {layout_of(subject) for subject in ours} == layouts
    assert {parse_shape(subject.variant).chunk for subject in ours} == chunks
    assert [str(subject) for subject in subjects if not subject.variant] == others
    assert subjects_of(group, []) == tuple(ours)


@pytest.mark.parametrize("dtype", FORMATS)
def test_numbers_are_what_the_format_holds(dtype):
    group = Group(OP, dtype, "block:16x16", 0.5)
    data = GroupData(group, CPU)
    for values in (data.x, data.matrix, data.bias):
        assert values.dtype == FORMATS[dtype].torch_dtype
        assert torch.equal(rounded(values.float(), FORMATS[dtype]), values)
    assert torch.equal(data.matrix != 0, data.mask)
    assert data.mask.float().mean() == pytest.approx(0.5, abs=0.04)
    mine = data.x.double().numpy() @ data.matrix.double().numpy().T + data.bias.double().numpy()
    right = torch.from_numpy(mine).to(FORMATS[dtype].torch_dtype)
    assert data.relative_error(right) < {"float16": 5e-4, "bfloat16": 4e-3, "tf32": 1e-6, "float32": 1e-6}[dtype]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("mistake", ["missing", "a row", "one output", "infinite"])
def test_a_wrong_output_is_found(dtype, mistake):
    data = GroupData(Group(OP, dtype, "dense", 0.0), CPU)
    y = torch.nn.functional.linear(data.x.double(), data.matrix.double(), data.bias.double())
    y = y.to(FORMATS[dtype].torch_dtype)
    match mistake:
        case "missing":
            y[-1, -1] = torch.nan
        case "a row":
            y[5] = y[6].clone()
        case "one output":
            y[7, 9] += 2 * y.double().square().mean().sqrt()
        case "infinite":
            y[0, 0] = torch.inf
    with pytest.raises(MeasurementError, match=f"outputs in {dtype} must differ from float64 by at most"):
        data.relative_error(y)


def test_inputs_are_filled_up_with_nan_and_shared():
    data = GroupData(Group(LinearOp(3, 5, 4), "float16", "dense", 0.0), CPU)
    rows, columns = data.input(False, 8), data.input(True, 16)
    assert torch.equal(rows[:, :5], data.x)
    assert torch.equal(columns[:, :3], data.x.t())
    assert bool(rows[:, 5:].isnan().all())
    assert bool(columns[:, 3:].isnan().all())
    assert data.input(False, 8) is rows
    assert data.buffer(32).data_ptr() == data.buffer(32).data_ptr()


def test_of_each_four_weights_the_two_largest_are_kept():
    matrix = torch.tensor([[1.0, -4.0, 3.0, 2.0, 0.5, 0.1, -0.2, 0.3]])
    assert two_of_four(matrix).tolist() == [[0.0, -4.0, 3.0, 0.0, 0.5, 0.0, 0.0, pytest.approx(0.3)]]


def test_a_subject_is_named_by_its_kernel_or_its_library():
    assert [str(Subject("torch")), str(Subject("tvm", "key"))] == ["torch", "key"]
