"""The commands `bench network` and `bench kernels`, and `bench CHECKPOINT` for short; times are computed."""

import json
from dataclasses import replace
from functools import partial

import pytest
from toy_flow import pruneaug

from pruneaug.api.bench_network import SAMPLES, Sample
from pruneaug.testing.network import analytic_times

OP = "linear-t64-i32-o16"


bench = partial(pruneaug, "bench")


def succeed(*words):
    ended = bench(*words)
    assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
    return ended.out


def fail(*words):
    ended = bench(*words)
    assert (ended.code, ended.out, "Traceback" in ended.err) == (2, "", False), ended.out
    return ended.err


def test_a_named_network_is_measured(computed):
    out = succeed("network", "digits_cnn", "--threads", 1, "--batch", 2)
    assert "digits_cnn, batch 2, 1 thread, block:8x1 at 90%\n" in out
    assert "x against the best dense, pruneaug-dense" in out
    result = json.loads(succeed("network", "digits_cnn", "--sparsity", 0.8, "--pattern", "block:4x1", "--json"))
    assert (result["network"], result["pattern"], result["sparsity"]) == ("digits_cnn", "block:4x1", 0.8)
    assert result["latency_ms"]["pruneaug-sparse"] > 0


def test_operators_without_a_kernel_are_shown_with_their_shares(computed, monkeypatch):
    def times(*args, **values):
        return tuple(replace(time, fallbacks={"topk, flip": 0.1234}) for time in analytic_times(*args, **values))

    monkeypatch.setattr("pruneaug.profiler.place.time_networks", times)
    out = succeed("network", "digits_cnn", "--sparsity", 0, "--against", "none")
    assert "no kernel of ours: topk, flip: 12.3% of the time of pruneaug-dense\n" in out


def test_what_the_input_of_a_built_in_network_leaves_open_is_as_usual(computed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_bench_text.py").write_text(
        "from torch import nn\ndef build(vocab_size):\n"
        " return nn.Sequential(nn.Embedding(vocab_size, 16), nn.Linear(16, 8))\n"
    )
    monkeypatch.setitem(SAMPLES, "cli_bench_text:build", Sample((6,), vocabulary=9))
    words = ("kernels", "--network", "cli_bench_text:build", "--trust-code", "--threads", 1)
    assert "linear-t6-i16-o8" in succeed(*words)
    assert "linear-t4-i16-o8" in succeed(*words, "--shape", 4)
    assert "linear-t6-i16-o8" in succeed(*words, "--vocabulary", 3)


def test_the_pattern_may_be_the_best_of_several(computed):
    out = succeed("network", "resnet20", "--pattern", "block:2x1, block:16x1", "--against", "torch")
    assert out.startswith("Patterns")
    assert "stays dense: fc: its weight matrix is only 10x64, too small for block:16x1" in out


def test_a_network_of_the_users_own_needs_trust_and_a_shape(computed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_bench_me.py").write_text(
        "from torch import nn\ndef build(vocab_size):\n"
        " return nn.Sequential(nn.Embedding(vocab_size, 16), nn.Linear(16, 8))\n"
    )
    words = ("network", "cli_bench_me:build", "--shape", "5", "--vocabulary", 7, "--against", "torch")
    assert "give `trust_code=True` (--trust-code)" in fail(*words)
    assert "needs the shape of one input" in fail(*words[:2], "--trust-code")
    assert "cli_bench_me:build, batch 1" in succeed(*words, "--trust-code")
    found = json.loads(succeed(*words, "--trust-code", "--pattern", "best", "--json"))
    assert found["pattern"] in {row["pattern"] for row in found["patterns"]}
    dense = json.loads(succeed(*words, "--trust-code", "--sparsity", 0, "--json"))
    assert (dense["pattern"], dense["speedup_vs_best_dense"]) == (None, None)


def test_an_absent_runtime_is_skipped_and_said(computed, monkeypatch):
    monkeypatch.setattr("pruneaug.profiler.runtimes.find_spec", lambda package: None)
    words = ("network", "digits_cnn", "--against", "openvino,torch")
    assert "skipped: openvino: openvino, onnx, onnxscript not installed; pip install" in succeed(*words)
    assert set(json.loads(succeed(*words, "--json"))["skipped"]) == {"openvino"}


def test_a_library_of_kernels_that_is_absent_is_said_and_the_others_are_measured(computed, monkeypatch):
    monkeypatch.setattr("pruneaug.profiler.runtimes.find_spec", lambda package: None if package == "onnx" else package)
    words = ("kernels", "--op", OP, "--against", "torch,onnxruntime,openvino")
    assert "warning: onnxruntime is not compared: onnx not installed; pip install" in succeed(*words)
    result = json.loads(succeed(*words, "--json"))
    dense = [row["library"] for row in result["kernels"] if row["pattern"] == "dense"]
    assert dense == ["tvm", "torch", "openvino"]


@pytest.mark.parametrize("first", [(), ("network",), ("--against", "torch", "--json")])
def test_bench_of_a_checkpoint_needs_no_second_word(toy_at, first):
    checkpoint = toy_at("exported") / "run" / "checkpoint"
    out = succeed(*first, checkpoint, "--trust-code")
    result = json.loads(out) if "--json" in first else None
    assert result is None or (result["network"], result["batch"], result["threads"]) == (str(checkpoint), 1024, 1)
    assert result is not None or "against the best dense" in out


def test_what_a_checkpoint_has_of_its_own_is_no_option(toy_at):
    checkpoint = toy_at("exported") / "run" / "checkpoint"
    for words in (("--sparsity", 0.5), ("--pattern", "best"), ("--batch", 2), ("--seed", 1), ("--shape", 3)):
        assert "a checkpoint has its own" in fail(checkpoint, "--trust-code", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("network resnet5", "'resnet5' is neither; did you mean 'resnet50'?; networks are digits_cnn"),
        ("resnet5", "a benchmark needs a checkpoint folder or the name of a network"),
        ("network runs/none", "a checkpoint must hold pruneaug.json"),
        ("network resnet20 --sparsity 1", "a sparsity must lie in [0, 1), but got 1"),
        ("network resnet20 --pattern 8x1", "a pattern must be 'block:ROWSxCOLS'"),
        ("network resnet20 --against tensorrt", "must name runtimes of torch, torch-compile, onnxruntime, openvino"),
        ("network resnet20 --shape 3x32x", "--shape must read like 3x224x224"),
        ("network resnet20 --batch 0", "must be at least 1, but got 0"),
        ("network resnet20 --shape 3x3", "--shape), but with numbers of 3x3 it raised RuntimeError"),
        ("network resnet20 --shape 8 --vocabulary 5", "; it is built for 3x32x32; give --shape CHANNELSxHEIGHTxWIDTH"),
        ("kernels --network resnet20 --shape 7", "--shape), but with numbers of 7 it raised RuntimeError"),
        ("network resnet20 --threads 0", "threads (--threads, or platform.threads of a job) must be between 1 and"),
        ("network resnet20 --against ,", "--against must name some of torch, torch-compile, onnxruntime, openvino, or"),
        ("kernels --op linear-t1-i8-o8 --against ,", "some of torch, onnxruntime, openvino, or `none`, but got ','"),
        ("kernels --op linear-t1-i8-o8 --pattern best", "`bench network NAME --pattern best` chooses it"),
        ("network resnet20 --pattern best,block:8x1", "`best` must stand alone"),
        ("kernels", "needs layers, but got none; give --op linear-t128-i768-o768 or --network NAME"),
        ("kernels --op linear", "an op must read like"),
        ("kernels --op linear-t1-i8-o8 --sparsity 0.5,much", "--sparsity must be numbers with commas, but got 'much'"),
        ("kernels --op linear-t8-i8-o8 --dtype half", "`dtype` must be one of float32, bfloat16, int8, but got 'half'"),
        (
            "kernels --op linear-t8-i8-o8 --against mkl",
            "must name libraries of torch, onnxruntime, openvino for float32",
        ),
        ("kernels --network resnet5", "did you mean 'resnet50'"),
        (
            "kernels --op linear-t8-i8-o8 --device gpu",
            "a GPU by its number as `cuda:1`, but got 'gpu'; choose one",
        ),
        ("kernels --op linear-t8-i8-o8 --device cuda --threads 2", "--threads is for the CPU"),
        ("kernels --op linear-t8-i8-o8 --compile-for sm_80", "--compile-for is for a GPU"),
        ("kernels --op linear-t64-i64-o64 --device cuda --dtype int8", "must be one of float16, bfloat16, tf32"),
        ("kernels --op linear-t64-i64-o64 --device cuda --against mkl", "libraries of torch, torch-2:4 on a GPU"),
        ("kernels --op linear-t64-i64-o64 --device cuda --compile-for sm_70", "must be one of sm_80, sm_86"),
    ],
)
def test_a_wrong_word_is_one_message(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fail(*words.split())


def test_no_word_shows_the_commands():
    ended = bench("--help")
    assert (ended.code, "network" in ended.out, "kernels" in ended.out) == (0, True, True)


def test_kernels_are_measured_by_op_and_by_network(computed):
    out = succeed("kernels", "--op", OP, "--pattern", "block:8x1,block:32x1", "--sparsity", "0.5,0.9", "--threads", 1)
    assert OP in out
    assert "1 thread, peak 100 GFLOP/s" in out
    assert f"skipped: {OP} block:32x1: its weight matrix is only 16x32" in out
    assert "block:8x1 is faster than the fastest library from 50% sparsity, than every dense kernel from 50%" in out
    result = json.loads(succeed("kernels", "--network", "digits_cnn", "--op", OP, "--batch", 2, "--json"))
    ops = list(dict.fromkeys(row["op"] for row in result["kernels"]))
    assert ops[0] == OP
    assert len(ops) > 5
    assert all("-b2-" in op for op in ops if op.startswith("conv2d"))
