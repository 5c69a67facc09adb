"""From which sparsity on a pattern pays: against times whose crossing is known."""

import pytest

from pruneaug.latency.break_even import BreakEven, break_even
from pruneaug.latency.records import LatencyRecord, error_record
from pruneaug.network.ops import LinearOp

OPS = [LinearOp(8, 16, 16 * i) for i in range(1, 5)]


def record(op, us, pattern="dense", sparsity=0.0, library="tvm"):
    return LatencyRecord(
        op, pattern, sparsity, library, "", "float32", 2,
        latency_us=us, p10_us=us, p90_us=us, runs=1, max_relative_error=0.0, measured_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def failed(op, pattern="dense", sparsity=0.0, library="tvm"):
    return error_record(
        op, pattern, sparsity, library, dtype="float32", threads=2, measured_at="2026-01-01T00:00:00+00:00", error="no"
    )


def straight(op, slope=100.0, pattern="block:8x1"):
    """A pattern that takes `slope` less the sparsity's share of it."""
    return [record(op, slope * (1 - sparsity), pattern, sparsity) for sparsity in (0.2, 0.4, 0.6, 0.8)]


def test_the_sparsity_is_where_the_interpolated_time_meets_the_fastest_dense():
    dense = [record(OPS[0], 50.0), record(OPS[0], 90.0, library="torch"), record(OPS[0], 70.0, library="openvino")]
    (found,) = break_even([*dense, *straight(OPS[0])]).values()
    assert found.ops == 1
    assert found.against_libraries == pytest.approx(0.3)
    assert found.against_all == pytest.approx(0.5)


def test_it_is_the_median_over_the_ops():
    records = []
    for op, dense_us in zip(OPS, (70.0, 30.0, 50.0)):
        records += [record(op, dense_us), record(op, dense_us + 5, library="torch"), *straight(op)]
    found = break_even(records)["block:8x1"]
    assert found.ops == 3
    assert found.against_all == pytest.approx(0.5)
    assert found.against_libraries == pytest.approx(0.45)


def test_what_is_faster_at_the_lowest_sparsity_already_has_that():
    assert break_even([record(OPS[0], 500.0), *straight(OPS[0])])["block:8x1"].against_all == 0.2


def test_a_pattern_that_pays_for_half_of_the_ops_has_no_sparsity():
    def measured(*dense_us):
        records = [made for op, us in zip(OPS, dense_us) for made in (record(op, us, library="torch"), *straight(op))]
        return break_even(records)["block:8x1"].against_libraries

    assert measured(50.0, 1.0) is None
    assert measured(1.0, 20.0) is None  # as fast is not faster
    assert measured(50.0, 50.0, 1.0) == pytest.approx(0.5)


def test_what_failed_says_nothing():
    records = [
        record(OPS[0], 50.0), failed(OPS[0], library="torch"), *straight(OPS[0]), failed(OPS[0], "block:8x1", 0.9),
        failed(OPS[1]), *straight(OPS[1]), failed(OPS[0], "block:4x1", 0.5),
    ]  # fmt: skip
    assert break_even(records) == {"block:8x1": BreakEven(2, None, pytest.approx(0.5))}


def test_patterns_are_apart():
    found = break_even([record(OPS[0], 50.0), *straight(OPS[0]), *straight(OPS[0], 125.0, "block:1x1")])
    assert found["block:8x1"].against_all == pytest.approx(0.5)
    assert found["block:1x1"].against_all == pytest.approx(0.6)
