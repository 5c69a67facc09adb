"""Which library and kernel variant compute each layer."""

from dataclasses import replace

import pytest

from pruneaug.errors import LatencyTableError
from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import LinearOp
from pruneaug.profiler.plan import Cell
from pruneaug.runtime.plan import plan_layers
from pruneaug.sparsity.patterns import Block, LayerChoice
from pruneaug.testing.platform import ANALYTIC_PLATFORM, analytic_record

SMALL, LARGE = LinearOp(4, 8, 8), LinearOp(4, 64, 64)
NETWORK = Network((Layer("a", SMALL), Layer("b", LARGE)))


def record(op, pattern, sparsity, library, variant, latency_us):
    measured = analytic_record(Cell(op, pattern, sparsity, library), ANALYTIC_PLATFORM)
    return replace(measured, variant=variant, latency_us=latency_us)


TABLE = LatencyTable(
    [
        record(SMALL, "dense", 0.0, "torch", "", 1.0),
        record(SMALL, "dense", 0.0, "tvm", "h8v1s1", 2.0),
        record(LARGE, "dense", 0.0, "torch", "", 9.0),
        record(LARGE, "dense", 0.0, "tvm", "h8v1s2", 8.0),
        record(LARGE, "block:8x1", 0.5, "tvm", "h8v2s1", 5.0),
        record(LARGE, "block:8x1", 0.9, "tvm", "h8v3s1", 3.0),
    ]
)


def test_a_plan_is_the_kernel_variant_of_each_layers_choice_even_where_another_library_is_faster():
    assert plan_layers(NETWORK, {}, TABLE) == {"a": "h8v1s1", "b": "h8v1s2"}
    sparse = {"b": LayerChoice(Block(8, 1), 0.8)}
    assert plan_layers(NETWORK, sparse, TABLE)["b"] == "h8v3s1"  # of the nearest sparsity


def test_a_choice_that_was_not_measured_has_no_plan():
    with pytest.raises(LatencyTableError, match="block:4x1"):
        plan_layers(NETWORK, {"b": LayerChoice(Block(4, 1), 0.8)}, TABLE)
