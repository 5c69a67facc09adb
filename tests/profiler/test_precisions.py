"""Layers in reduced precision are measured as those in float32 are."""

from dataclasses import replace

import pytest

from pruneaug.errors import InputError
from pruneaug.kernels.layers import Buffers
from pruneaug.kernels.lowp.formats import FORMATS, INT8
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms import detect
from pruneaug.profiler import precisions
from pruneaug.profiler.measure import Measurer
from pruneaug.profiler.op_data import OpData
from pruneaug.profiler.plan import Cell
from pruneaug.sparsity.patterns import parse_pattern

LINEAR = LinearOp(37, 64, 48)
CONV = Conv2dOp(2, 16, 24, 9, 11, (3, 3), padding=(1, 1, 1, 1))


def platform_of(form):
    platform = detect(1, dtype=form.name)
    if form.extension not in platform.isa:
        pytest.skip(f"this CPU lacks {form.extension}")
    return platform


@pytest.mark.parametrize("op", [LINEAR, CONV], ids=["linear", "conv2d"])
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_cells_become_records_of_their_dtype(form, op):
    measurer = Measurer(platform_of(form), budget_s=0.0)
    cells = [
        Cell(op, "dense", 0.0), Cell(op, "dense", 0.0, "torch"), Cell(op, "block:8x4", 0.5), Cell(op, "block:8x4", 0.9),
    ]  # fmt: skip
    records = list(measurer.measure(op, cells))
    assert [record.error for record in records] == [None] * 4
    assert [(record.library, record.pattern, record.dtype) for record in records] == [
        (cell.library, cell.pattern, form.name) for cell in cells
    ]
    assert all(0 < record.p10_us <= record.latency_us <= record.p90_us for record in records)
    assert all(record.max_relative_error < (0.05 if form is INT8 else 0.01) for record in records)
    assert [bool(record.variant) for record in records] == [True, False, True, True]


def test_what_fails_is_a_record_with_its_error(monkeypatch):
    measurer = Measurer(platform_of(INT8), seeds=(0,), budget_s=0.0)
    strided = replace(CONV, stride=(2, 2))
    (record,) = measurer.measure(strided, [Cell(strided, "dense", 0.0)])
    assert "has no kernel in reduced precision: its stride is 2x2" in record.error
    monkeypatch.setattr(measurer._kernels, "largest_error", 1e-6)
    for library in ("tvm", "torch"):
        (record,) = measurer.measure(LINEAR, [Cell(LINEAR, "dense", 0.0, library)])
        assert "relative error in int8 must be at most 1e-06" in record.error


def test_a_cpu_without_the_instructions_measures_nothing():
    platform = replace(detect(1), isa=("avx2",), dtype="bfloat16")
    with pytest.raises(InputError, match="bfloat16 kernels need a CPU with avx512_bf16"):
        Measurer(platform)


@pytest.mark.parametrize("dtype", ["float32", *FORMATS])
def test_weights_of_every_dtype_are_as_far_away_as_in_a_network(builder, monkeypatch, dtype):
    asked = []
    for name in ("LayerKernel", "LowpLayer"):
        monkeypatch.setattr(precisions, name, lambda *_, cold_bytes, **__: asked.append(cold_bytes))
    platform = replace(detect(1), dtype=dtype, isa=tuple(form.extension for form in FORMATS.values()))
    op = LinearOp(2, 1024, 1024)
    data, kernels = OpData(op), precisions.kernels_for(platform, builder)
    for sparsity in (0.0, 0.9):
        kernels.bound(data, data.mask(parse_pattern("block:4x4"), sparsity, 0), [None], Buffers())
    assert asked == [64 << 20, 8 << 20]
    assert {precisions.cold_bytes(size) for size in (1, (1 << 19) - 1)} == {8 << 20}
