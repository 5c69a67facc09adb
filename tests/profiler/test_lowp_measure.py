"""Layers in reduced precision: every library computes the same, and a measured cell is a record."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from pruneaug.errors import InputError, MeasurementError
from pruneaug.kernels.lowp.formats import BFLOAT16, FORMATS, INT8, affine_of
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms import detect
from pruneaug.profiler import lowp_measure
from pruneaug.profiler.lowp_measure import LowpMeasurer
from pruneaug.profiler.lowp_peers import PEERS, DenseLayer, installed
from pruneaug.profiler.plan import Cell
from pruneaug.profiler.reference import Reference

LINEAR = LinearOp(37, 64, 48)
CONV = Conv2dOp(2, 16, 24, 9, 11, (3, 3), padding=(1, 1, 1, 1))
CELLS = [(form, name) for form in PEERS for name in PEERS[form]]


@pytest.fixture(autouse=True)
def _threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def layer_of(op):
    generator = torch.Generator().manual_seed(0)
    matrix, bias = torch.randn(op.matrix_shape, generator=generator), torch.randn(op.matrix_shape[0])
    size = (op.tokens, op.in_features) if isinstance(op, LinearOp) else (op.batch, op.in_channels, op.height, op.width)
    x = torch.randn(size, generator=generator)
    y_affine = affine_of(torch.tensor([-4.0, 4.0]) * op.matrix_shape[1] ** 0.5)
    return DenseLayer(op, matrix, bias, x, affine_of(x), y_affine, threads=1)


@pytest.mark.parametrize("op", [LINEAR, CONV], ids=["linear", "conv2d"])
@pytest.mark.parametrize(("form", "name"), CELLS, ids=lambda value: getattr(value, "name", value))
def test_a_library_computes_the_layer_but_for_rounding(form, name, op):
    peer = PEERS[form][name]
    if absent := [package for package in peer.packages if find_spec(package) is None]:
        pytest.skip(f"{', '.join(absent)} not installed")
    layer = layer_of(op)
    with torch.inference_mode():
        call, read = peer.make(layer)
        call()
        result = read(call())
    reference = Reference(op, layer.x, torch.Generator())
    assert reference.relative_error(result, layer.matrix, layer.bias) < (0.005 if form is BFLOAT16 else 0.03)


def test_pytorch_says_which_padding_it_lacks():
    layer = layer_of(Conv2dOp(1, 8, 8, 6, 8, (4, 3), padding=(1, 1, 2, 1)))
    with pytest.raises(MeasurementError, match="PyTorch pads both sides of an image alike, but got conv2d-"):
        PEERS[BFLOAT16]["torch"].make(layer)


def platform_of(form):
    platform = detect(1, dtype=form.name)
    if form.extension not in platform.isa:
        pytest.skip(f"this CPU lacks {form.extension}")
    return platform


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_cells_become_records_of_their_dtype(form):
    measurer = LowpMeasurer(platform_of(form), seeds=(0,), budget_s=0.001)
    cells = [Cell(LINEAR, "dense", 0.0), Cell(LINEAR, "dense", 0.0, "torch"), Cell(LINEAR, "block:8x4", 0.5)]
    records = list(measurer.measure(LINEAR, cells))
    assert [record.error for record in records] == [None] * 3
    assert [(record.library, record.pattern, record.dtype) for record in records] == [
        (cell.library, cell.pattern, form.name) for cell in cells
    ]
    assert all(0 < record.p10_us <= record.latency_us <= record.p90_us for record in records)
    assert [bool(record.variant) for record in records] == [True, False, True]


def test_what_fails_is_a_record_with_its_error(monkeypatch):
    measurer = LowpMeasurer(platform_of(INT8), seeds=(0,), budget_s=0.001)
    sparse, strided = Cell(LINEAR, "block:8x4", 0.5, "torch"), Cell(replace(CONV, stride=(2, 2)), "dense", 0.0)
    (record,) = measurer.measure(LINEAR, [sparse])
    assert "torch measures dense layers only, but got pattern block:8x4" in record.error
    (record,) = measurer.measure(strided.op, [strided])
    assert "has no kernel in reduced precision: its stride is 2x2" in record.error
    monkeypatch.setitem(lowp_measure._LARGEST_ERROR, INT8, 1e-6)
    (record,) = measurer.measure(LINEAR, [Cell(LINEAR, "dense", 0.0)])
    assert "relative error in int8 must be at most 1e-06" in record.error


def test_a_cpu_without_the_instructions_measures_nothing():
    platform = replace(detect(1), isa=("avx2",), dtype="bfloat16")
    with pytest.raises(InputError, match="bfloat16 kernels need a CPU with avx512_bf16"):
        LowpMeasurer(platform)


def test_a_library_that_is_not_installed_is_not_timed(monkeypatch):
    monkeypatch.setattr("pruneaug.profiler.lowp_peers.find_spec", lambda package: None)
    assert installed(INT8) == installed(BFLOAT16) == ("torch",)
