"""Measuring an op on this machine: what is accepted, what is refused. Times only have to be above zero."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.kernels.variants import parse_variant
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms import detect
from pruneaug.profiler import precisions
from pruneaug.profiler.measure import Measurer
from pruneaug.profiler.op_data import OpData
from pruneaug.profiler.plan import Cell, cell_of, wanted
from pruneaug.sparsity.masks import mask_sparsity
from pruneaug.sparsity.patterns import parse_pattern

OPS = [
    LinearOp(17, 24, 40),
    LinearOp(1, 24, 40),
    Conv2dOp(2, 5, 24, 7, 9, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1)),
    Conv2dOp(1, 5, 24, 7, 9, (2, 3), padding=(0, 1, 1, 1)),
    Conv2dOp(1, 6, 24, 7, 9, (3, 3), padding=(1, 1, 1, 1), groups=3),
]
LINEAR = OPS[0]


@pytest.fixture
def measurer():
    return Measurer(detect(threads=2), budget_s=0.0)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
def test_every_cell_of_an_op_is_measured_and_right(measurer, op):
    cells = wanted([op], ["block:1x1", "block:8x1", "block:1x8", "block:5x3"], [0.5, 0.95])
    records = list(measurer.measure(op, cells))
    assert [cell_of(record) for record in records] == list(cells)
    for record in records:
        assert record.error is None
        assert 0 < record.p10_us <= record.latency_us <= record.p90_us
        assert record.runs >= 4
        assert 0 <= record.max_relative_error < 1e-5
        assert (record.dtype, record.threads) == ("float32", 2)
        if record.library == "torch":
            assert record.variant == ""
        else:
            parse_variant(record.variant)


def add_a_little(y):
    return y * 1.001


def forget_the_last_row(y):
    y[..., -1] = 0.0
    return y


def spoil_one_value(y):
    y = y.contiguous()
    y.view(-1)[y.numel() // 2] = math.nan
    return y


@pytest.mark.parametrize("op", [LINEAR, OPS[2]], ids=lambda op: op.key)
@pytest.mark.parametrize("spoil", [add_a_little, forget_the_last_row, spoil_one_value])
def test_a_kernel_that_computes_something_else_becomes_an_error_record(measurer, monkeypatch, op, spoil):
    class Wrong(precisions.LayerKernel):
        def result(self):
            return spoil(super().result().clone())

    monkeypatch.setattr(precisions, "LayerKernel", Wrong)
    cells = [Cell(op, "dense", 0.0, "torch"), Cell(op, "block:4x1", 0.5), Cell(op, "dense", 0.0)]
    torchs, sparse, dense = measurer.measure(op, cells)
    assert torchs.error is None
    for record in (sparse, dense):
        assert record.error.startswith(
            "MeasurementError: a relative error in float32 must be at most 0.0001, but variant h"
        )
        assert math.isnan(record.latency_us)


def test_a_kernel_that_raises_becomes_an_error_record_and_the_next_cell_is_measured(measurer, monkeypatch):
    class Failing(precisions.LayerKernel):
        def __init__(self, op, weights, *args, **kwargs):
            if weights.mask.float().mean() > 0.4:
                raise RuntimeError("told to fail")
            super().__init__(op, weights, *args, **kwargs)

    monkeypatch.setattr(precisions, "LayerKernel", Failing)
    first, second = measurer.measure(LINEAR, [Cell(LINEAR, "block:4x1", 0.5), Cell(LINEAR, "block:4x1", 0.9)])
    assert (first.error, second.error) == ("RuntimeError: told to fail", None)


def test_pytorch_measures_dense_layers_only(measurer):
    (record,) = measurer.measure(LINEAR, [Cell(LINEAR, "block:4x1", 0.5, "torch")])
    assert record.error == "MeasurementError: torch measures dense layers only, but got pattern block:4x1"


def test_a_pattern_that_is_none_becomes_an_error_record(measurer):
    (record,) = measurer.measure(LINEAR, [Cell(LINEAR, "block:0x1", 0.5)])
    assert record.error.startswith("InputError: a pattern must be")


def test_what_runs_between_two_records_is_not_in_inference_mode(measurer):
    for _ in measurer.measure(LINEAR, [Cell(LINEAR, "dense", 0.0), Cell(LINEAR, "block:4x1", 0.5)]):
        assert not torch.is_inference_mode_enabled()


@given(st.floats(0, 1), st.sampled_from(["block:1x1", "block:8x1", "block:3x5"]), st.integers(0, 9))
def test_a_mask_has_the_asked_sparsity_within_one_block(sparsity, pattern, seed):
    block = parse_pattern(pattern)
    mask = OpData(LINEAR).mask(block, sparsity, seed)
    blocks = math.prod(block.grid(LINEAR.matrix_shape))
    edge = 0.1 if pattern == "block:3x5" else 0.0  # the narrower last blocks count for less
    assert abs(mask_sparsity(mask) - sparsity) <= 1 / blocks + edge + 1e-9
    assert mask.any()
