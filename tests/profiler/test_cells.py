"""From the times of a cell's variants to its record."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pruneaug.errors import MeasurementError
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms import detect
from pruneaug.profiler.cells import checked, failed, fastest, mask_seeds, timed, to_try
from pruneaug.profiler.plan import Cell
from pruneaug.sparsity.patterns import Block

SMALL, LARGE = LinearOp(4, 16, 16), Conv2dOp(1, 256, 64, 4, 4, (3, 3))
CELL = Cell(SMALL, "block:4x1", 0.5)


def test_the_variant_is_chosen_by_one_half_of_the_runs_and_timed_by_the_other():
    times = np.array([[[1.0, 1.0, 9.0, 7.0], [5.0, 5.0, 2.0, 2.0]], [[2.0, 2.0, 8.0, 6.0], [5.0, 5.0, 2.0, 2.0]]])
    best, chosen = fastest(times)  # [masks, variants, runs]
    assert best == 0
    assert chosen.tolist() == [9.0, 7.0, 8.0, 6.0]


def test_variants_are_compared_by_the_mean_over_masks_of_their_medians():
    times = np.ones((2, 2, 6))
    times[:, 0, :3] = [[4.0, 4.0, 400.0], [6.0, 6.0, 600.0]]  # medians 4 and 6
    times[:, 1, :3] = [[1.0, 1.0, 1.0], [10.0, 10.0, 10.0]]  # 1 and 10
    assert fastest(times)[0] == 0


def test_several_masks_are_measured_only_where_they_make_a_difference():
    assert mask_seeds(SMALL, Block(4, 1), (0, 1, 2)) == (0, 1, 2)
    assert mask_seeds(SMALL, None, (0, 1, 2)) == (0,)
    assert mask_seeds(LARGE, Block(4, 1), (3, 1)) == (3,)


def test_the_last_sparsity_s_fastest_is_tried_beside_the_likeliest():
    assert to_try(["a", "b", "c"], None) == ["a", "b", "c"]
    assert to_try(["a", "b", "c"], "c") == ["c", "a"]
    assert to_try(["a", "b", "c"], "a") == ["a"]


@pytest.mark.parametrize("error", [1.1e-4, float("inf"), float("nan")])
def test_a_result_that_is_wrong_has_no_time(error):
    with pytest.raises(MeasurementError, match=r"in float32 must be at most 0\.0001, but variant h2 of .* has"):
        checked(error, 1e-4, CELL, "float32", "variant h2")


def test_a_record_tells_what_was_measured():
    assert checked(1e-4, 1e-4, CELL, "float32", "variant h2") == 1e-4
    platform = detect(threads=1)
    record = timed(CELL, platform, "h2", np.arange(101.0), 1e-6)
    assert (record.p10_us, record.latency_us, record.p90_us, record.runs) == (10.0, 50.0, 90.0, 101)
    assert (record.op, record.pattern, record.sparsity, record.variant) == (SMALL, "block:4x1", 0.5, "h2")
    assert (record.max_relative_error, record.error) == (1e-6, None)
    broken = failed(CELL, platform, "ValueError: no")
    assert (broken.error, broken.pattern, broken.threads) == ("ValueError: no", "block:4x1", 1)
    for one in (record, broken):
        assert datetime.now(UTC) - datetime.fromisoformat(one.measured_at) < timedelta(minutes=1)
