"""Jobs whose platform is a GPU, without one: their profile, their table, and what is not there yet."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from computed_gpu import GPU, STATE, ComputedProcess
from toy_flow import pruneaug, write_job

from pruneaug.api import profiling
from pruneaug.api.job import OpenJob, open_job
from pruneaug.api.profiling import estimate_profile
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.shapes import parse_shape
from pruneaug.kernels.cuda.variants import parse_plan
from pruneaug.latency.store import LatencyStore
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms.cuda import gpu_platform
from pruneaug.profiler.cuda.cells import shapes_of_cells
from pruneaug.profiler.cuda.process import GpuProcess
from pruneaug.profiler.plan import wanted
from pruneaug.testing.network import analytic_times

PATTERNS, SPARSITIES = ["block:16x16", "block:64x1"], [0.5, 0.75, 0.9]
CPU = ("--set", "platform.device=cpu", "--set", "platform.dtype=float32")
TESTS = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch):
    """A machine with GPU, whose kernels are compiled and whose times are computed, those of networks too."""
    monkeypatch.setattr("pruneaug.api.job.detect_gpu", lambda index: GPU)
    monkeypatch.setattr(profiling, "GpuProcess", ComputedProcess)
    monkeypatch.setattr(ProgramFolder, "missing", lambda self, shapes, arch: [])
    monkeypatch.setattr(ComputedProcess, "asked", [])
    monkeypatch.setattr(
        "pruneaug.profiler.local_gpu.LocalGpu.time",
        lambda self, subjects, platform, **options: analytic_times(subjects, platform, **options),
    )
    return ComputedProcess


@pytest.fixture
def write(tmp_path):
    """The path of a job on a GPU; `changes` are those of `toy_job`."""

    def make(**changes):
        defaults = {
            "platform__device": "cuda", "platform__threads": None, "platform__dtype": "bfloat16",
            "platform__kernels": str(tmp_path / "kernels"), "space__patterns": PATTERNS,
            "space__sparsities": SPARSITIES,
        }  # fmt: skip
        return write_job(tmp_path, **{**defaults, **changes})

    return make


def profiled(job, *options):
    ended = pruneaug("profile", job, "--json", *options)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def store_of(folder):
    (table,) = (folder / "db").iterdir()
    return LatencyStore(table)


def cells(folder):
    return {(r.op.key, r.pattern, r.sparsity, r.library): r for r in store_of(folder).load() if r.error is None}


def test_a_profile_measures_every_cell_and_the_next_one_nothing(write, gpu, tmp_path):
    job = write()
    first = profiled(job)
    # Two ops: 64x64 with both patterns, 64x4 dense only; each dense by our kernels and by PyTorch.
    assert (first["measured"], first["reused"], first["failed"]) == (6 + 2 + 2, 0, [])
    assert first["warnings"] == [
        "clocks were held down by power limit, at 1980 MHz in the median; ratios within a group still compare"
    ]
    assert len(list((store_of(tmp_path).folder / "rest").iterdir())) == 1
    asked = len(gpu.asked)
    again = profiled(job)
    assert (again["measured"], again["reused"]) == (0, 10)
    assert len(gpu.asked) == asked
    assert estimate_profile(open_job(job))[:2] == (0, 10)


def test_a_table_holds_the_fastest_kernel_of_a_pattern_and_the_faster_library_dense(write, gpu, tmp_path):
    profiled(write())
    found = cells(tmp_path)
    key = "linear-t1024-i64-o64"
    dense, library = found[key, "dense", 0.0, "tvm"], found[key, "dense", 0.0, "torch"]
    assert (dense.variant, dense.latency_us) == (library.variant, library.latency_us) == ("torch", library.latency_us)
    sparse = found[key, "block:16x16", 0.5, "tvm"]
    chunk, tile = parse_plan(sparse.variant)
    assert f"c{chunk}-{tile}" == sparse.variant
    assert sparse.latency_us == pytest.approx(1 + 1024 * 64 * 64 * 0.5 / 1e5)
    assert (sparse.dtype, sparse.threads, sparse.max_relative_error) == ("bfloat16", 1, 1e-3)


def test_all_kernels_compete_at_the_first_sparsity_and_the_three_fastest_at_the_others(write, gpu):
    profiled(write())
    counts = {}
    for group, subjects in gpu.asked:
        counts.setdefault((group.op.key, group.pattern), []).append(subjects)
    ours = counts["linear-t1024-i64-o64", "block:64x1"]
    assert (ours[0] > 3, ours[1:]) == (True, [3, 3])


def test_the_table_and_its_platform_are_shown(write, gpu, tmp_path):
    profiled(write())
    (row,) = json.loads(pruneaug("db", "ls", tmp_path / "db", "--json").out)
    name = gpu_platform(GPU, dtype="bfloat16").name
    assert (row["platform"], row["cpu"], row["dtype"], row["times"]) == (name, "Fake GPU", "bfloat16", 10)
    shown = json.loads(pruneaug("db", "show", tmp_path / "db" / name, "--json").out)
    assert {(one["pattern"], one["library"]) for one in shown} == {
        ("dense", "tvm"), ("dense", "torch"), ("block:16x16", "tvm"), ("block:64x1", "tvm"),
    }  # fmt: skip
    journal = (tmp_path / "db" / name / "gpu" / "variants.jsonl").read_text().splitlines()
    assert len(journal) == sum(subjects for _, subjects in gpu.asked)
    assert json.loads(journal[0])["state"]["during"] == STATE


def test_kernels_that_fail_cost_their_cells_and_are_tried_again(write, gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "broken", ["-c1-"])  # those that gather single columns
    job = write()
    first = profiled(job)
    assert first["measured"] == 7
    assert {(row["pattern"], row["sparsity"]) for row in first["failed"]} == {("block:64x1", at) for at in SPARSITIES}
    assert all("kernels failed; the first, bfloat16-rows-c1-" in row["error"] for row in first["failed"])
    monkeypatch.setattr(gpu, "broken", [])
    again = profiled(job)
    assert (again["measured"], again["reused"], again["failed"]) == (3, 7, [])


def test_a_kernel_that_fails_leaves_its_cell_to_the_others(write, gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "broken", ["c16-none-t64n16"])
    assert profiled(write())["failed"] == []
    assert cells(tmp_path)["linear-t1024-i64-o64", "block:16x16", 0.5, "tvm"].variant == "c16-t128n16k64s3w4x1"


def test_what_is_not_compiled_is_said(write, gpu, monkeypatch):
    monkeypatch.setattr(ProgramFolder, "missing", lambda self, shapes, arch: list(shapes))
    monkeypatch.setattr("pruneaug.profiler.cuda.programs.find_spec", lambda package: None)
    told = profiled(write())
    assert told["measured"] == 4  # PyTorch computes the dense layers
    assert {row["error"].partition(";")[0] for row in told["failed"]} == {"none of its kernels is compiled"}
    assert "compile them with --compile-for sm_80 where it is" in told["warnings"][0]


def test_a_job_is_compiled_for_a_gpu_that_is_elsewhere(write, tmp_path, monkeypatch):
    asked = {}

    def compile_ahead(shapes, arch, folder, progress):
        asked.update(keys=[shape.key for shape in shapes], arch=arch, path=folder.path)
        return {}

    monkeypatch.setattr(profiling, "compile_ahead", compile_ahead)
    job = write()
    ended = pruneaug("profile", job, "--compile-for", "sm_90a")
    assert ended.code == 0, ended.err
    ops = {layer.op for layer in open_job(job).network.layers}
    needed = {shape.key for shape in shapes_of_cells(wanted(ops, PATTERNS, SPARSITIES), "bfloat16", "sm_90a")}
    assert (set(asked["keys"]), asked["arch"], asked["path"]) == (needed, "sm_90a", tmp_path / "kernels")
    assert ended.out == f"{len(needed)} kernels for sm_90a in {tmp_path / 'kernels'}\n"
    assert {parse_shape(key).layout for key in needed} == {"rows"}
    ended = pruneaug("profile", job, "--compile-for", "sm_90a", *CPU)
    assert (ended.code, "its platform.device is cpu; set it to cuda" in ended.err) == (2, True)


def test_the_kernels_of_the_network_are_compiled_too(write, monkeypatch):
    def gelu_network():
        residual = Residual(torch.nn.Linear(64, 64))
        return torch.nn.Sequential(torch.nn.Flatten(), residual, torch.nn.GELU(), torch.nn.Linear(64, 4))

    class Residual(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return x + self.inner(x)

    asked = []
    monkeypatch.setattr("pruneaug.testing.task._mlp", gelu_network)
    monkeypatch.setattr(profiling, "compile_ahead", lambda shapes, *rest, **options: asked.extend(shapes) or {})
    profiling.compile_job(write(space__patterns=["block:16x16"]), "sm_90a")
    with_sum = {shape for shape in asked if shape.residual}
    assert {shape.activation for shape in with_sum} == {"gelu"}
    plain = {replace(shape, residual=False, activation="none") for shape in with_sum}
    assert plain <= {shape for shape in asked if not shape.residual}
    assert len(plain) == len(with_sum)


def test_a_convolution_of_several_groups_is_measured_dense_only(write, gpu, monkeypatch):
    grouped = Conv2dOp(1, 64, 64, 5, 5, (3, 3), groups=2)
    network = Network((Layer("linear", LinearOp(8, 64, 64)), Layer("grouped", grouped)))
    job = open_job(write())
    job.__dict__["network"] = network
    monkeypatch.setattr(OpenJob, "rest", lambda self: "of this network")
    assert profiling.profile_job(job).measured == 8 + 2
    assert {group.pattern for group, _ in gpu.asked if group.op == grouped} == {"dense"}
    assert estimate_profile(job)[:2] == (0, 10)


def test_a_spec_is_valid_without_a_gpu_and_its_profile_is_one_error(write, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    job = write()
    assert pruneaug("spec", "validate", job).code == 0
    ended = pruneaug("profile", job)
    assert (ended.code, ended.out) == (2, "")
    assert "device 'cuda' needs a GPU that PyTorch can use" in ended.err
    assert "Traceback" not in ended.err


def test_a_search_reads_the_table_of_a_gpu_that_is_not_there(write, gpu, tmp_path, monkeypatch):
    job = write(platform__name="fake-gpu", space__patterns=["block:16x16"])
    profiled(job)
    monkeypatch.undo()  # no GPU any more
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ended = pruneaug("search", job)
    assert ended.code == 0, ended.err
    assert len(list((tmp_path / "run" / "trials").glob("*.json"))) == 3
    ended = pruneaug("export", tmp_path / "run")
    assert (ended.code, "device 'cuda' needs a GPU that PyTorch can use" in ended.err) == (2, True)


def test_a_gpu_that_is_another_than_the_table_is_of_is_refused(write, gpu, tmp_path, monkeypatch):
    job = write(platform__name="fake-gpu")
    profiled(job)
    monkeypatch.setattr(gpu, "gpu_here", replace(GPU, name="Another", multiprocessors=7))
    ended = pruneaug("profile", job, "--set", "space.sparsities=[0.6]")
    assert ended.code == 1
    assert "the GPU must be the platform 'fake-gpu', but it is another one: cpu: Fake GPU here, Another" in ended.err
    monkeypatch.setattr(gpu, "gpu_here", replace(GPU, driver="2.0"))
    told = profiled(job, "--set", "space.sparsities=[0.6]")
    assert told["measured"] == 2
    assert any("another version of driver: 2.0 here, 1.0 there" in warning for warning in told["warnings"])
    monkeypatch.setattr(gpu, "gpu_here", None)
    ended = pruneaug("profile", job, "--set", "space.sparsities=[0.7]")
    assert (ended.code, "needs a GPU that PyTorch can use, but there is none" in ended.err) == (2, True)


@pytest.mark.slow
def test_a_kernel_that_crashes_costs_one_cell(write, tmp_path, monkeypatch):
    paths = [str(TESTS / "profiler" / "cuda"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.syspath_prepend(TESTS / "kernels" / "cuda")
    from fake_driver import fake_program

    monkeypatch.setattr("pruneaug.api.job.detect_gpu", lambda index: GPU)
    monkeypatch.setattr(OpenJob, "rest", lambda self: "measured before")
    process = partial(GpuProcess, device="fake_gpu:emulated", budget_s=0.0)
    monkeypatch.setattr(profiling, "GpuProcess", process)
    changes = {"platform__batch": 16, "space__patterns": ["block:16x16"], "space__sparsities": [0.5]}
    job = write(**changes)
    ops = [layer.op for layer in open_job(job).network.layers]
    folder = ProgramFolder(tmp_path / "kernels")
    for shape in shapes_of_cells(wanted(ops, ["block:16x16"], [0.5]), "bfloat16", GPU.arch):
        folder.write(fake_program(shape))
    monkeypatch.setenv("FAKE_GPU_FAULTS", json.dumps({"rows-c16-": "abort"}))
    first = profiled(job)
    ((row,),) = [first["failed"]]
    assert (first["measured"], row["pattern"], row["sparsity"]) == (4, "block:16x16", 0.5)
    assert "the measuring process died of SIGABRT" in row["error"]
    monkeypatch.delenv("FAKE_GPU_FAULTS")
    for counts in ((1, 4), (0, 5)):
        again = profiled(job)
        assert (again["measured"], again["reused"], again["failed"]) == (*counts, [])
    assert cells(tmp_path)["linear-t16-i64-o64", "block:16x16", 0.5, "tvm"].max_relative_error < 4e-3


def test_two_of_four_is_measured_by_pytorch_where_a_layer_can_have_it(write, gpu, tmp_path):
    job = write(space__patterns=["nm:2:4", "block:16x16"])
    # Two ops: 64x64 with 2:4 once and three sparsities of blocks, 64x4 dense only; each dense by both.
    assert (profiled(job)["measured"], estimate_profile(open_job(job))[:2]) == (1 + 3 + 2 + 2, (0, 8))
    found = cells(tmp_path)["linear-t1024-i64-o64", "nm:2:4", 0.5, "tvm"]
    assert (found.variant, found.latency_us) == ("torch-2:4", pytest.approx(1 + 1024 * 64 * 64 * 0.5 / 4e5))
    assert [subjects for group, subjects in gpu.asked if group.pattern == "nm:2:4"] == [1]


def test_kernels_are_compiled_ahead_for_a_job_with_two_of_four(write, monkeypatch):
    compiled = []
    monkeypatch.setattr(profiling, "compile_ahead", lambda shapes, *_, **__: compiled.extend(shapes) or {})
    profiling.compile_job(write(space__patterns=["nm:2:4"]), "sm_80")
    assert compiled
    assert {shape.chunk > 1 for shape in compiled} == {True}  # dense ones
