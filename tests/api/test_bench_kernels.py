"""Single layers: every asked kernel, its rate, and what is wrong in a request."""

from dataclasses import replace
from functools import partial

import pytest

from pruneaug.api import bench_kernels as module
from pruneaug.api.bench_kernels import bench_kernels
from pruneaug.errors import InputError
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms import detect
from pruneaug.profiler.peak import measure_peak
from pruneaug.testing.platform import ANALYTIC_MEASURER, OPTIONS_VARIABLE

OP = LinearOp(64, 32, 16)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(module, "measure_peak", lambda platform: 100.0)
    return partial(bench_kernels, measurer=ANALYTIC_MEASURER)


def test_an_op_is_measured_dense_by_both_and_in_every_pattern_and_sparsity(bench):
    result = bench([OP.key, OP], patterns=["block:8x1", "element"], sparsities=[0.5, 0.9], threads=1)
    assert (result["threads"], result["peak_gflops"], result["skipped"]) == (1, 100.0, [])
    assert [(row["library"], row["pattern"], row["sparsity"]) for row in result["kernels"]] == [
        ("tvm", "dense", 0.0), ("torch", "dense", 0.0),
        ("tvm", "block:8x1", 0.5), ("tvm", "block:8x1", 0.9), ("tvm", "block:1x1", 0.5), ("tvm", "block:1x1", 0.9),
    ]  # fmt: skip
    for row in result["kernels"]:
        assert row["p10_us"] <= row["latency_us"] <= row["p90_us"]
        flops = 2 * 64 * 32 * 16 * (1 - row["sparsity"])
        assert row["gflops"] == pytest.approx(flops / row["latency_us"] / 1e3)
        assert row["peak_share"] == pytest.approx(row["gflops"] / 100)
        assert row["error"] is None


def test_libraries_that_are_asked_for_compute_every_op_dense_and_decide_where_a_pattern_pays(bench, monkeypatch):
    monkeypatch.setattr("pruneaug.profiler.runtimes.find_spec", lambda package: package)
    ops = [OP, LinearOp(512, 512, 512), LinearOp(2048, 512, 512)]
    against = ["openvino", "onnxruntime", "openvino"]
    result = bench(ops, patterns=["block:8x1", "block:1x1"], sparsities=[0.1, 0.5, 0.95], threads=1, against=against)
    dense = [(row["op"], row["library"]) for row in result["kernels"] if row["pattern"] == "dense"]
    assert dense == [(op.key, name) for op in ops for name in ("tvm", "openvino", "onnxruntime")]
    found = result["break_even"]["block:8x1"]
    assert found["ops"] == 3
    # The fake's libraries compute at 0.4 of the peak, our dense kernel at 0.8 and these blocks at 0.75.
    assert found["against_libraries"] == 0.1
    assert 0.05 < found["against_all"] < 0.11
    single = result["break_even"]["block:1x1"]
    assert single["against_libraries"] == pytest.approx(1 - 0.75 / 8**0.5 / 0.4, abs=0.03)
    assert single["against_all"] == pytest.approx(1 - 0.75 / 8**0.5 / 0.8, abs=0.03)


def test_without_a_dense_time_of_a_library_there_is_nothing_to_compare_with(bench):
    found = bench([OP], sparsities=[0.5], threads=1, against=[])["break_even"]["block:8x1"]
    assert (found["against_libraries"], found["against_all"]) == (None, 0.5)


def test_a_pattern_that_does_not_fit_is_skipped_by_name(bench):
    result = bench([OP], patterns=["block:32x1", "block:16x1"], sparsities=[0.5])
    reason = "its weight matrix is only 16x32"
    assert result["skipped"] == [{"op": OP.key, "pattern": "block:32x1", "reason": reason}]
    assert {row["pattern"] for row in result["kernels"]} == {"dense", "block:16x1"}


def test_a_kernel_that_fails_is_a_row_with_its_error(bench, monkeypatch):
    monkeypatch.setenv(OPTIONS_VARIABLE, '{"faults": {"block:8x1@0.9": "error"}}')
    *others, failed = bench([OP])["kernels"]
    assert failed["error"] == "told to fail"
    assert (failed["latency_us"], failed["gflops"], failed["peak_share"]) == (None, None, None)
    assert all(row["error"] is None for row in others)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_in_reduced_precision_libraries_of_that_dtype_are_measured_and_the_others_are_left_out(
    bench, monkeypatch, dtype
):
    isa = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni")
    monkeypatch.setattr(module, "detect", lambda threads, dtype: replace(detect(threads, dtype=dtype), isa=isa))
    monkeypatch.setattr("pruneaug.profiler.runtimes.find_spec", lambda package: None)
    strided = Conv2dOp(1, 8, 16, 9, 9, (3, 3), (2, 2), (1, 1, 1, 1))
    against = ["torch", "openvino"]
    result = bench([OP, strided], patterns=["block:8x4"], sparsities=[0.5], dtype=dtype, threads=1, against=against)
    assert result["skipped"] == [{"op": strided.key, "pattern": "all", "reason": "its stride is 2x2"}]
    assert [(row["library"], row["pattern"], row["dtype"]) for row in result["kernels"]] == [
        ("tvm", "dense", dtype), ("torch", "dense", dtype), ("tvm", "block:8x4", dtype),
    ]  # fmt: skip
    assert f"-1t-{dtype}-" in result["platform"]
    missing = [warning for warning in result["warnings"] if "is not compared" in warning]
    assert missing == ["openvino is not compared: openvino not installed; pip install 'pruneaug[peers]'"]


def test_a_cpu_without_the_instructions_says_so(bench, monkeypatch):
    monkeypatch.setattr(module, "detect", lambda threads, dtype: replace(detect(threads, dtype=dtype), isa=("avx2",)))
    with pytest.raises(InputError, match="int8 kernels need a CPU with avx512_vnni, but this one has only avx2"):
        bench([OP], dtype="int8")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"ops": []}, "needs an op, but got none"),
        ({"ops": ["linear-128"]}, "an op must read like 'linear-t128-i768-o768'"),
        ({"patterns": ["dense"]}, "dense is measured in any case"),
        ({"patterns": ["nm:2:4"]}, "patterns must be blocks, such as block:8x1, but got nm:2:4; `bench kernels"),
        ({"patterns": ["block:0x1"]}, "a pattern must be 'block:ROWSxCOLS'"),
        ({"against": ["torch", "openvno"]}, "libraries of torch, onnxruntime, openvino for float32, but got openvno"),
        ({"dtype": "int4"}, "`dtype` must be one of float32, bfloat16, int8, but got 'int4'; did you mean 'int8'"),
        ({"sparsities": [0.5, 1.0]}, r"a sparsity must lie in \[0, 1\), but got 1"),
    ],
)
def test_a_wrong_request_is_one_error(bench, request_, message):
    with pytest.raises(InputError, match=message):
        bench(**{"ops": [OP], **request_})


@pytest.mark.slow
def test_this_machine_measures_kernels_and_its_peak():
    result = bench_kernels([LinearOp(128, 64, 64)], sparsities=[0.5], threads=1)
    rows = result["kernels"]
    assert all(row["error"] is None and row["max_relative_error"] < 1e-4 for row in rows)
    assert result["peak_gflops"] > 0
    assert measure_peak(detect(1)) > 0
    assert [bool(row["variant"]) for row in rows] == [True, False, True]
