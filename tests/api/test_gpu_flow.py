"""A whole job on a GPU, without one: profiled, searched, exported and loaded, its kernels' own source emulated."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from computed_gpu import GPU, ComputedProcess
from toy_flow import pruneaug as command
from toy_flow import toy_job

import pruneaug
from pruneaug.api import profiling
from pruneaug.errors import CheckpointError, DeviceError, InputError
from pruneaug.exporter.checkpoint import read_checkpoint
from pruneaug.platforms.gpu_state import GpuState
from pruneaug.profiler.local_gpu import LocalGpu
from pruneaug.report.data import OWN_DENSE, OWN_SPARSE
from pruneaug.runtime.cuda.network import CudaNetwork
from pruneaug.testing.task import ToyTask

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime" / "cuda"))

from emulated import KERNELS, Recorded, fake_program, needs_gxx


class FakeDevice:
    """On which each network of a turn takes `step_us` longer than the one before it; none is run for that.

    A profile runs the sparsest network first, an export the dense ones.
    """

    torch_device = torch.device("cpu")
    gpu, step_us = GPU, 1000.0

    def times_us(self, runs):
        return [9000.0 + self.step_us * i for i in range(len(runs))]

    def state(self):
        return GpuState(1980.0, 2619.0, 300.0, 50.0, ("power limit",), "1.0")


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU: its measuring process is a fake, its networks run in the emulator."""
    monkeypatch.setattr(profiling, "GpuProcess", ComputedProcess)
    monkeypatch.setattr("pruneaug.profiler.cuda.cells.compile_missing", lambda *args: (set(), []))
    monkeypatch.setattr(
        "pruneaug.profiler.local_gpu.compiled_programs",
        lambda shapes, arch, folder, progress: [fake_program(shape, arch) for shape in shapes],
    )
    device = FakeDevice()
    local = partial(LocalGpu, make_device=lambda index: device, recorder=Recorded(), kernels=KERNELS)
    for module in ("job", "loading", "bench_gpu_network"):
        monkeypatch.setattr(f"pruneaug.api.{module}.LocalGpu", local)
    monkeypatch.setattr("pruneaug.api.job.detect_gpu", lambda index=0: device.gpu)
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    return device


def job_in(folder):
    return toy_job(
        folder, platform__device="cuda", platform__threads=None, platform__batch=32, platform__name="fake-gpu",
        space__patterns=["block:16x16"],
    )  # fmt: skip


def exported_of(folder, gpu, **options):
    job = job_in(folder)
    pruneaug.profile(job)
    pruneaug.search(job)
    gpu.step_us = -1000.0
    return pruneaug.export(folder / "run", **options)


def relative_error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.slow
@needs_gxx
def test_a_job_ends_with_a_network_that_computes_what_pytorch_does(tmp_path, gpu, monkeypatch):
    exported = exported_of(tmp_path, gpu)
    report = exported.report
    rows = {row["runtime"]: row for row in report["baselines"]}
    assert set(rows) == {"torch", "torch-compile", OWN_DENSE}
    assert all(row["error"] is None and row["latency_ms"] > 0 for row in rows.values())
    assert report["best"]["latency_ms_measured"] < rows[OWN_DENSE]["latency_ms"]
    assert "clocks were held down by power limit; ratios within a run still compare" in report["warnings"]
    assert report["artifact"] == "checkpoint/artifact-fake-gpu/network.safetensors"

    opened = read_checkpoint(exported.checkpoint)
    ours = {name for name, plan in opened.plans.items() if plan not in ("", "torch")}
    assert set(opened.masks) <= ours
    plain = ToyTask().build_model().eval()
    plain.load_state_dict(dict(opened.weights))
    with torch.no_grad():
        expected = plain(*opened.example_inputs)
    # A machine that runs the network needs no compiler of kernels.
    monkeypatch.setattr("pruneaug.platforms.cuda.installed", lambda packages: {"pruneaug": pruneaug.__version__})
    for options in ({"artifact": True}, {"trust_code": True}):
        network = pruneaug.load(exported.checkpoint, **options)
        assert isinstance(network, CudaNetwork)
        assert relative_error(network(*opened.example_inputs), expected) < 1e-5
        assert {layer.name for layer in network.report.layers if layer.kernel} == ours
    named = {layer.name: layer.kernel for layer in network.report.layers}
    plans = {name: opened.plans[name].split("-") for name in ours}
    assert all(part in named[name].split("-") for name, parts in plans.items() for part in parts)

    result = pruneaug.bench(exported.checkpoint, rounds=1, trust_code=True)
    assert result["latency_ms"].keys() == {"torch", "torch-compile", OWN_DENSE, OWN_SPARSE}
    assert {layer["name"]: layer["kernel"] for layer in result["layers"]} == named
    assert (result["dtype"], result["predicted_ms"]) == ("float32", report["best"]["latency_ms_predicted"])
    assert not any("no times of that platform" in warning for warning in result["warnings"])
    ended = command("bench", exported.checkpoint, "--trust-code", "--rounds", 1, "--dtype", "bfloat16", "--json")
    other = json.loads(ended.out)
    assert (other["dtype"], other["predicted_ms"]) == ("bfloat16", None)
    assert any(warning.startswith("the network was pruned for fake-gpu (Fake") for warning in other["warnings"])

    for verb in (pruneaug.load, pruneaug.bench):
        with pytest.raises(InputError, match="a network for a GPU, which has no threads, but got 2; leave `threads`"):
            verb(exported.checkpoint, threads=2)
    gpu.gpu = replace(GPU, name="Another", multiprocessors=7)
    with pytest.raises(CheckpointError, match="runs only on the platform and versions that it was compiled with"):
        pruneaug.load(exported.checkpoint, artifact=True)
    with pytest.raises(DeviceError, match="the GPU must be the platform 'fake-gpu', but it is another one: cpu: Fake"):
        pruneaug.export(tmp_path / "run")


@pytest.mark.slow
@needs_gxx
def test_a_network_that_is_not_measured_is_still_checked_and_saved(tmp_path, gpu):
    exported = exported_of(tmp_path, gpu, measured=False)
    assert exported.report["best"]["latency_ms_measured"] is None
    assert (tmp_path / "run" / exported.report["artifact"]).is_file()
    info = json.loads((exported.checkpoint / "pruneaug.json").read_text())
    assert info["platform"]["arch"] == "sm_80"


@pytest.mark.slow
@needs_gxx
def test_a_network_that_computes_something_else_is_neither_timed_nor_saved(tmp_path, gpu, monkeypatch):
    job = job_in(tmp_path)
    pruneaug.profile(job)
    pruneaug.search(job)
    monkeypatch.setattr(KERNELS, "launch", lambda shape, scalars, arguments: arguments["y"].zero_())
    exported = pruneaug.export(tmp_path / "run")
    assert "relative error in float32 must be at most 0.001" in exported.report["best"]["error"]
    assert exported.report["artifact"] is None
    assert any("the artifact could not be saved" in warning for warning in exported.report["warnings"])
