"""N:M in the latency table: one point, and nothing between points."""

import pytest

from pruneaug.errors import LatencyTableError
from pruneaug.latency.records import LatencyRecord, record_from_json, record_to_json
from pruneaug.latency.rest import alike
from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import Conv2dOp, LinearOp, can_have
from pruneaug.sparsity.patterns import NM, TWO_OF_FOUR, Block, LayerChoice

OP = LinearOp(8, 64, 64)
HALF = LayerChoice(TWO_OF_FOUR, 0.5)


def record(pattern, sparsity, latency_us, variant=""):
    return LatencyRecord(
        OP, pattern, sparsity, "tvm", variant, "bfloat16", 1, latency_us, latency_us - 1, latency_us + 1, 9, 0.0,
        "2026-01-01T00:00:00+00:00",
    )  # fmt: skip


RECORDS = [
    record("dense", 0.0, 10.0, "torch"), record("nm:2:4", 0.5, 6.0, "torch-2:4"), record("block:8x1", 0.5, 7.0),
    record("block:8x1", 0.9, 3.0), record("block:16x1", 0.5, 5.0),
]  # fmt: skip
TABLE = LatencyTable(RECORDS)


def test_a_record_reads_back():
    assert [record_from_json(record_to_json(each)) for each in RECORDS] == RECORDS


def test_its_time_is_that_of_its_one_sparsity():
    assert (TABLE.latency_us(OP, HALF), TABLE.noise_us(OP, HALF)) == (6.0, 1.0)
    assert TABLE.record(OP, HALF).variant == "torch-2:4"
    assert TABLE.grid(OP, TWO_OF_FOUR) == (0.5,)
    with pytest.raises(LatencyTableError, match=r"must lie in the measured range \[0.5, 0.5\] of nm:2:4"):
        TABLE.latency_us(OP, LayerChoice(TWO_OF_FOUR, 0.25))


def test_patterns_are_blocks_first():
    assert TABLE.patterns(OP) == (Block(8, 1), Block(16, 1), TWO_OF_FOUR)


@pytest.mark.parametrize(
    ("op", "pattern", "can"),
    [
        (LinearOp(3, 64, 48), TWO_OF_FOUR, True), (LinearOp(3, 64, 40), TWO_OF_FOUR, False),
        (LinearOp(3, 40, 64), TWO_OF_FOUR, False), (Conv2dOp(1, 64, 64, 8, 8, (1, 1)), TWO_OF_FOUR, False),
        (LinearOp(3, 16, 16), NM(1, 32), False), (LinearOp(3, 7, 5), Block(5, 7), True),
        (LinearOp(3, 7, 5), Block(6, 1), False), (Conv2dOp(1, 3, 8, 8, 8, (3, 3)), Block(8, 27), True),
    ],
)  # fmt: skip
def test_which_layers_can_have_a_pattern(op, pattern, can):
    assert can_have(op, pattern) == can


def test_layers_that_are_pruned_alike_have_at_most_its_own_sparsity():
    network = Network((Layer("a", OP), Layer("b", LinearOp(8, 64, 10))))
    assert alike(network, "nm:2:4", 0.9) == {"a": HALF}
    assert alike(network, "nm:2:4", 0.0) == {"a": LayerChoice(TWO_OF_FOUR, 0.0)}
    assert set(alike(network, "block:8x1", 0.9)) == {"a", "b"}
