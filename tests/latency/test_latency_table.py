import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.errors import LatencyTableError
from pruneaug.latency.records import LatencyRecord
from pruneaug.latency.table import LatencyTable
from pruneaug.network.ops import LinearOp
from pruneaug.sparsity.patterns import DENSE, Block, LayerChoice

OP, OTHER_OP = LinearOp(4, 64, 64), LinearOp(4, 64, 128)
BLOCK = Block(8, 1)


def record(latency_us, pattern="block:8x1", sparsity=0.0, library="tvm", op=OP, **values):
    spread = {"p10_us": latency_us - 1, "p90_us": latency_us + 2}
    fields = {"variant": "", "dtype": "float32", "threads": 2, "runs": 9, "max_relative_error": 0.0, **spread}
    fields |= {"measured_at": "2026-01-01T00:00:00+00:00", **values}
    return LatencyRecord(op, pattern, sparsity, library, latency_us=latency_us, **fields)


TABLE = LatencyTable(
    [
        record(100.0, "dense", library="torch"),
        record(80.0, "dense"),
        record(50.0, sparsity=0.5, variant="a"),
        record(20.0, sparsity=0.8, variant="b", p90_us=40.0),
        record(10.0, sparsity=0.9, variant="c"),
        record(70.0, "block:4x4", sparsity=0.5),
        record(300.0, "dense", op=OTHER_OP),
    ]
)


def test_dense_is_the_fastest_library_and_a_networks_dense_layer_runs_on_its_own():
    assert TABLE.dense(OP).library == "tvm"
    faster = LatencyTable([record(60.0, "dense", library="torch"), record(80.0, "dense")])
    assert faster.dense(OP).library == "torch"
    assert faster.dense(OP).latency_us == 60.0
    assert faster.latency_us(OP, DENSE) == 80.0


def test_measured_points_are_exact_and_between_them_the_time_falls():
    assert [TABLE.latency_us(OP, LayerChoice(BLOCK, at)) for at in (0.5, 0.8, 0.9)] == pytest.approx([50, 20, 10])
    assert 20.0 < TABLE.latency_us(OP, LayerChoice(BLOCK, 0.7)) < 50.0


def test_the_record_is_the_nearest_measured_one_and_the_lower_of_two_equally_near():
    nearest = {at: TABLE.record(OP, LayerChoice(BLOCK, at)).variant for at in (0.5, 0.6, 0.7, 0.85, 0.86, 0.9)}
    assert nearest == {0.5: "a", 0.6: "a", 0.7: "b", 0.85: "b", 0.86: "c", 0.9: "c"}


@given(at=st.floats(0.5, 0.9))
def test_the_nearest_record_agrees_with_brute_force(at):
    distances = {sparsity: abs(sparsity - at) for sparsity in TABLE.grid(OP, BLOCK)}
    assert distances[TABLE.record(OP, LayerChoice(BLOCK, at)).sparsity] == min(distances.values())


def test_noise_is_the_larger_half_spread_of_the_measured_neighbours():
    assert TABLE.noise_us(OP, DENSE) == 1.5
    assert TABLE.noise_us(OP, LayerChoice(BLOCK, 0.5)) == 1.5
    assert TABLE.noise_us(OP, LayerChoice(BLOCK, 0.6)) == (40 - 19) / 2
    assert TABLE.noise_us(OP, LayerChoice(BLOCK, 0.9)) == pytest.approx(10.5)


def test_the_table_tells_what_it_covers():
    assert TABLE.ops() == (OP, OTHER_OP)
    assert TABLE.patterns(OP) == (Block(4, 4), Block(8, 1))
    assert TABLE.patterns(OTHER_OP) == ()
    assert TABLE.grid(OP, BLOCK) == (0.5, 0.8, 0.9)
    assert TABLE.grid(OP, None) == (0.0,)
    assert TABLE.grid(OTHER_OP, BLOCK) == ()


def test_missing_names_what_has_no_time():
    assert TABLE.missing([OP, OTHER_OP], [None, BLOCK], [0.5, 0.6]) == (
        (OP, BLOCK, 0.6),
        (OTHER_OP, BLOCK, 0.5),
        (OTHER_OP, BLOCK, 0.6),
    )


def test_of_duplicates_the_latest_measurement_wins_in_whatever_order_files_were_merged():
    old, new = record(9.0, measured_at="2026-01-01T00:00:00+00:00"), record(5.0, measured_at="2026-01-01T02:00:00Z")
    newest = record(7.0, measured_at="2026-01-01T02:30:00+01:00")  # 01:30 UTC
    for order in itertools.permutations([old, new, newest]):
        assert LatencyTable(order).latency_us(OP, LayerChoice(BLOCK, 0.0)) == 5.0


def test_of_equally_late_duplicates_the_last_one_wins():
    assert LatencyTable([record(9.0), record(5.0)]).latency_us(OP, LayerChoice(BLOCK, 0.0)) == 5.0


def test_a_record_with_an_error_holds_no_time_and_hides_none():
    broken = replace(record(math.nan, measured_at="2027-01-01T00:00:00Z"), error="hung")
    assert LatencyTable([record(9.0), broken]).latency_us(OP, LayerChoice(BLOCK, 0.0)) == 9.0
    assert LatencyTable([broken]).grid(OP, BLOCK) == ()


@pytest.mark.parametrize("sparsity", [0.0, 0.49, 0.91, 1.0])
def test_nothing_is_extrapolated(sparsity):
    with pytest.raises(
        LatencyTableError, match=r"range \[0.5, 0.9\] of block:8x1 for linear-t4-i64-o64.*space.sparsities"
    ):
        TABLE.latency_us(OP, LayerChoice(BLOCK, sparsity))


@pytest.mark.parametrize("ask", [TABLE.latency_us, TABLE.record, TABLE.noise_us])
def test_a_miss_names_op_pattern_what_is_there_and_the_way_out(ask):
    with pytest.raises(
        LatencyTableError,
        match=r"block:2x2 for linear-t4-i64-o64, .*only block:4x4, block:8x1, dense.*`pruneaug profile`",
    ):
        ask(OP, LayerChoice(Block(2, 2), 0.5))
    with pytest.raises(LatencyTableError, match=r"dense for linear-t1-i1-o1, but it has nothing for this op"):
        ask(LinearOp(1, 1, 1), DENSE)


@pytest.mark.parametrize("other", [{"threads": 4}, {"dtype": "bfloat16"}])
def test_times_of_other_threads_or_dtypes_do_not_mix(other):
    with pytest.raises(LatencyTableError, match=r"one number of threads, but got .*float32 with 2 threads"):
        LatencyTable([record(9.0), record(9.0, **other)])
