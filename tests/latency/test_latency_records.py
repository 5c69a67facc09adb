import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.errors import LatencyTableError
from pruneaug.latency.records import LatencyRecord, error_record, record_from_json, record_to_json
from pruneaug.network.ops import Conv2dOp, LinearOp

OP = LinearOp(128, 768, 3072)
RECORD = LatencyRecord(
    op=OP,
    pattern="block:8x1",
    sparsity=0.9,
    library="tvm",
    variant="tile48",
    dtype="float32",
    threads=2,
    latency_us=12.5,
    p10_us=12.0,
    p90_us=13.5,
    runs=50,
    max_relative_error=1e-7,
    measured_at="2026-11-21T08:00:00+00:00",
)
VERSION_1 = (Path(__file__).parent / "record_version_1.jsonl").read_text().splitlines()


def changed(**values):
    return json.dumps({**json.loads(record_to_json(RECORD)), **values})


@given(
    sizes=st.lists(st.integers(1, 4096), min_size=3, max_size=3),
    sparsity=st.floats(0, 1),
    latency_us=st.floats(1e-3, 1e9),
    variant=st.text(),
    block=st.tuples(st.integers(1, 64), st.integers(1, 64)),
)
def test_a_record_survives_json_in_one_line(sizes, sparsity, latency_us, variant, block):
    record = LatencyRecord(
        LinearOp(*sizes),
        f"block:{block[0]}x{block[1]}",
        sparsity,
        "tvm",
        variant,
        "float32",
        4,
        latency_us,
        latency_us,
        latency_us,
        3,
        0.0,
        "2026-11-21T08:00:00Z",
    )
    line = record_to_json(record)
    assert "\n" not in line
    assert record_from_json(line) == record


def test_a_record_with_an_error_survives_json_without_numbers_that_json_lacks():
    record = error_record(
        Conv2dOp(1, 16, 32, 8, 8, (3, 3)),
        "block:4x1",
        0.5,
        "tvm",
        dtype="float32",
        threads=1,
        measured_at="2026-11-21T08:00:00+00:00",
        error="died of SIGSEGV",
    )
    line = record_to_json(record)
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    again = record_from_json(line)
    assert again.error == "died of SIGSEGV"
    assert math.isnan(again.latency_us)
    assert record_to_json(again) == line


def test_records_of_version_1_stay_readable():
    linear, conv, failed = map(record_from_json, VERSION_1)
    assert linear == RECORD
    assert conv.op == Conv2dOp(1, 64, 128, 56, 56, (3, 3), (2, 2), (1, 1, 1, 1))
    assert (conv.pattern, conv.latency_us, conv.library) == ("dense", 830.25, "torch")
    assert failed.error == "hung"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "one JSON object"),
        ("<<<<<<< HEAD", "one JSON object"),
        ("[1]", "one JSON object, but got list"),
        ("{}", "version must be one of 1, but got None"),
        (changed(version=2), "version must be one of 1, but got 2; update pruneaug"),
        (changed(version=True, threads="x"), "wrong value"),
        (changed(version=[1]), "version must be one of"),
        (changed(op="pool-2x2"), "an op must read like"),
        (changed(op=None), "wrong value"),
        (changed(pattern="blok:8x1"), "a pattern must be"),
        (changed(sparsity=1.5), r"sparsity must lie in \[0, 1\]"),
        (changed(sparsity=None), "wrong value"),
        (changed(pattern="dense"), "be 0 for dense, but got 0.9"),
        (changed(latency_us=0), "latency_us must be above 0"),
        (changed(latency_us=None), "latency_us must be above 0.*got None"),
        (changed(latency_us="fast"), "wrong value"),
        (changed(measured_at="yesterday"), "wrong value"),
        (changed(measured_at="2026-11-21T08:00:00"), "time zone"),
        (changed(speed=3), "unknown keys speed"),
        (record_to_json(RECORD).replace('"runs": 50, ', ""), "must have 'runs'"),
    ],
)
def test_a_wrong_record_is_refused_with_the_rule_and_the_value(line, message):
    with pytest.raises(LatencyTableError, match=message):
        record_from_json(line)
