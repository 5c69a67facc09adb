import json
from dataclasses import replace

import pytest

from pruneaug.errors import InputError
from pruneaug.latency.store import LatencyStore
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.profiler.plan import Cell, Task, plan, wanted
from pruneaug.testing.platform import ANALYTIC_PLATFORM, analytic_record

OP, CONV = LinearOp(4, 64, 10), Conv2dOp(1, 3, 16, 8, 8, (3, 3), padding=(1, 1, 1, 1))


def test_wanted_are_dense_cells_of_both_libraries_and_every_pattern_at_every_sparsity():
    assert wanted([OP, OP], ["block:8x1", "element", "block:8x1"], [0.5, 0.9, 0.5]) == (
        Cell(OP, "dense", 0.0, "tvm"),
        Cell(OP, "dense", 0.0, "torch"),
        Cell(OP, "block:8x1", 0.5),
        Cell(OP, "block:8x1", 0.9),
        Cell(OP, "block:1x1", 0.5),
        Cell(OP, "block:1x1", 0.9),
    )


def test_a_pattern_larger_than_the_weight_matrix_is_not_wanted():
    patterns = ["block:10x64", "block:11x1", "block:1x65"]
    assert [cell.pattern for cell in wanted([OP], patterns, [0.5])] == ["dense", "dense", "block:10x64"]
    assert [cell.pattern for cell in wanted([CONV], ["block:16x27", "block:1x28"], [0.5])][2:] == ["block:16x27"]


def test_dense_among_the_patterns_adds_nothing():
    assert wanted([OP], ["dense"], [0.5]) == wanted([OP], [], [])


def test_an_unknown_pattern_is_refused():
    with pytest.raises(InputError, match="'block:8'"):
        wanted([OP], ["block:8"], [0.5])


def test_the_plan_leaves_out_what_has_a_time_and_repeats_what_has_an_error(tmp_path):
    store = LatencyStore(tmp_path)
    cells = wanted([OP, CONV], ["block:8x1"], [0.5, 0.9])
    assert plan([OP, CONV], ["block:8x1"], [0.5, 0.9], store) == cells
    for cell in cells[:3]:
        store.append(analytic_record(cell, ANALYTIC_PLATFORM))
    for cell in (cells[1], cells[3]):
        store.append(
            replace(analytic_record(cell, ANALYTIC_PLATFORM), error="hung", measured_at="2027-01-01T00:00:00Z")
        )
    assert plan([OP, CONV], ["block:8x1"], [0.5, 0.9], store) == cells[3:]


def test_a_task_survives_json():
    task = Task(CONV, wanted([CONV], ["block:8x1"], [0.5]), ANALYTIC_PLATFORM, {"seeds": [0, 1], "repeats": 3})
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task
