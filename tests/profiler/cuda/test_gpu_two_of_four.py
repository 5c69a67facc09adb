"""2:4 as a pattern of a profile: who computes it, under which mask, and what its cell says."""

import pytest
import torch
from fake_gpu import FakeDevice, FaultyDriver
from semi_structured_on_cpu import operators

from pruneaug.errors import InputError
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms.cuda import gpu_platform
from pruneaug.profiler.cuda.calls import library_calls
from pruneaug.profiler.cuda.cases import NETWORK_LAYOUTS, TORCH, Group, Subject, groups_of, shapes_of, subjects_of
from pruneaug.profiler.cuda.cells import cell_record, shapes_of_cells
from pruneaug.profiler.cuda.data import GroupData, two_of_four
from pruneaug.profiler.cuda.measure import measure_group
from pruneaug.profiler.cuda.records import GpuRecord, failed, warnings_of
from pruneaug.profiler.masks import synthetic_masks
from pruneaug.profiler.op_data import OpData
from pruneaug.profiler.plan import Cell, wanted
from pruneaug.sparsity.masks import check_mask
from pruneaug.sparsity.patterns import TWO_OF_FOUR, LayerChoice

OP = LinearOp(33, 48, 80)
CONV = Conv2dOp(1, 48, 80, 6, 6, (1, 1))
HALF = Subject("torch-2:4")
CPU = torch.device("cpu")


def group(op=OP, dtype="bfloat16", pattern="nm:2:4"):
    return Group(op, dtype, pattern, 0.0 if pattern == "dense" else 0.5)


def test_a_layer_that_can_have_it_has_one_cell_whatever_sparsities_are_asked():
    found = wanted([OP, CONV, LinearOp(33, 48, 40)], ["nm:2:4", "block:16x16"], [0.6, 0.9], ["tvm"])
    assert [cell for cell in found if cell.pattern == "nm:2:4"] == [Cell(OP, "nm:2:4", 0.5)]
    assert len([cell for cell in found if cell.pattern == "block:16x16"]) == 6
    assert wanted([OP], ["nm:2:4"], [0.9], ["tvm"], dense_only=[OP]) == (Cell(OP, "dense", 0.0),)
    assert groups_of([OP, CONV], ["bfloat16"], ["nm:2:4"], [0.6, 0.9]) == (
        group(pattern="dense"), group(), group(CONV, pattern="dense"),
    )  # fmt: skip


def test_no_kernel_of_ours_computes_it():
    assert shapes_of(group(), NETWORK_LAYOUTS) == ()
    assert subjects_of(group(), ["torch-2:4"]) == (HALF,)
    assert subjects_of(group(dtype="tf32"), ["torch-2:4"]) == ()
    cells = [Cell(OP, "dense", 0.0), Cell(OP, "nm:2:4", 0.5)]
    assert shapes_of_cells(cells, "bfloat16", "sm_80") == shapes_of_cells(cells[:1], "bfloat16", "sm_80")


def test_masks_for_measuring_are_two_of_four():
    for mask in (
        GroupData(group(), CPU).mask,
        OpData(OP).mask(TWO_OF_FOUR, 0.5, 3),
        synthetic_masks(Network((Layer("a", OP),)), {"a": LayerChoice(TWO_OF_FOUR, 0.5)})["a"],
    ):
        assert check_mask(mask, TWO_OF_FOUR)
        assert int(mask.sum()) * 2 == mask.numel()


@pytest.mark.parametrize("pattern", ["dense", "nm:2:4"])
def test_pytorchs_product_is_a_networks_and_of_what_the_group_computes(monkeypatch, pattern):
    packed = []

    def pack(weight):
        packed.append(weight)
        return weight.clone()

    monkeypatch.setattr("pruneaug.profiler.cuda.calls.compress", pack)
    data, device = GroupData(group(pattern=pattern), CPU), FakeDevice(FaultyDriver())
    expected = two_of_four(data.matrix) if pattern == "dense" else data.matrix
    with operators():
        found = library_calls(group(pattern=pattern), HALF, data, device)
        for call in found.calls:
            call()
    assert len(packed) == 1
    assert torch.equal(packed[0], expected)
    assert (found.matrix is None) == (pattern == "nm:2:4")
    assert found.result().shape == (33, 80)
    assert found.relative_error(data) < 1e-2
    assert found.may_refuse


def test_what_no_graph_records_is_timed_call_by_call_and_says_so(monkeypatch, tmp_path):
    class Refusing(FakeDevice):
        def recorded(self, calls):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("pruneaug.profiler.cuda.calls.compress", torch.clone)
    device = Refusing(FaultyDriver())
    with operators():
        steps = measure_group(group(), [HALF], device, ProgramFolder(tmp_path), budget_s=0.0)
        (record,) = [step for step in steps if isinstance(step, GpuRecord)]
    assert record.latency_us > 0
    assert GpuRecord.from_json(record.to_json()) == record
    (_, warning) = warnings_of([record])
    assert warning == (
        "times of torch-2:4 are those of single calls, and of Python, because no CUDA graph records it: "
        "RuntimeError: operation not permitted when stream is capturing"
    )
    steps = measure_group(group(pattern="dense"), [Subject(TORCH)], device, ProgramFolder(tmp_path), budget_s=0.0)
    (record,) = [step for step in steps if isinstance(step, GpuRecord)]
    assert (record.latency_us, "when stream is capturing" in record.error) == (None, True)


def test_a_row_that_is_no_whole_fours_is_refused_as_before():
    op = LinearOp(3, 6, 16)
    data = GroupData(Group(op, "bfloat16", "dense", 0.0), CPU)
    with pytest.raises(InputError, match="2:4 needs in_features that 4 divides, but got linear-t3-i6-o16"):
        library_calls(Group(op, "bfloat16", "dense", 0.0), HALF, data, FakeDevice(FaultyDriver()))


def test_a_cells_variant_is_the_library_and_a_failure_says_why():
    platform = gpu_platform(FakeDevice(FaultyDriver()).gpu, dtype="bfloat16")
    cell = Cell(OP, "nm:2:4", 0.5)
    measured = GpuRecord(
        group(), HALF, "Fake GPU", "2026-01-01T00:00:00+00:00", latency_us=5.0, p10_us=4.0, p90_us=7.0, choice_us=5.0,
        rounds=10, launches=3, weight_copies=1, max_relative_error=1e-3, zeros=0.5, state={},
    )  # fmt: skip
    record = cell_record(cell, platform, [measured])
    assert (record.library, record.variant, record.latency_us) == ("tvm", "torch-2:4", 5.0)
    assert LatencyTable([record]).latency_us(OP, LayerChoice(TWO_OF_FOUR, 0.5)) == 5.0
    reason = "RuntimeError: _cslt_compress: not there"
    assert cell_record(cell, platform, [failed(group(), HALF, "Fake GPU", reason)]).error == f"torch-2:4: {reason}"
