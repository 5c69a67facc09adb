"""Jobs whose platform is a GPU of another machine: what is asked of it, and a profile over a real server of RPC."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from computed_gpu import GPU, ComputedProcess
from toy_flow import pruneaug, write_job

from pruneaug.api import profiling
from pruneaug.api.job import OpenJob, open_job
from pruneaug.api.profiling import estimate_profile
from pruneaug.exporter.checkpoint import read_checkpoint
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.variants import parse_plan
from pruneaug.latency.store import LatencyStore
from pruneaug.platforms import write_platform
from pruneaug.platforms.cuda import gpu_platform
from pruneaug.profiler.cuda.cells import shapes_of_cells
from pruneaug.profiler.network import NetworkTime
from pruneaug.profiler.plan import wanted
from pruneaug.profiler.remote.gpu import remote_gpu
from pruneaug.profiler.remote.gpu_networks import GpuOverRpc
from pruneaug.report.data import OWN_DENSE
from pruneaug.runtime.cuda.network import load_cuda_network

TESTS = Path(__file__).parents[1]
ADDRESS = "gpu-machine:9090"


def remote_job(folder, address=ADDRESS, **changes):
    return write_job(
        folder,
        **{
            "platform__device": "cuda:1", "platform__threads": None, "platform__dtype": "bfloat16",
            "platform__kernels": str(folder / "kernels"), "platform__remote": {"address": address},
            "space__patterns": ["block:16x16"], "space__sparsities": [0.5], **changes,
        },
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """The machines whose GPU was asked for what it is; their times are computed."""
    found = []

    def detect(remote, index):
        found.append((remote.address, index))
        return GPU

    for module in ("job", "planning"):
        monkeypatch.setattr(f"pruneaug.api.{module}.detect_remote_gpu", detect)
    monkeypatch.setattr(profiling, "remote_gpu", lambda kernels, remote, index: ComputedProcess(kernels, index=index))
    monkeypatch.setattr(profiling, "GpuProcess", None)
    monkeypatch.setattr(ProgramFolder, "missing", lambda self, shapes, arch: [])
    monkeypatch.setattr(ComputedProcess, "asked", [])
    return found


def profiled(job):
    ended = pruneaug("profile", job, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_a_profile_measures_both_libraries_and_the_network_there(tmp_path, asked, monkeypatch):
    timed = []

    def time(self, subjects, platform, *, rounds, progress):
        timed.append((self.remote.address, self.index, len(subjects)))
        return tuple(NetworkTime(s.runtime, 2.0 - i, 1.0, 1.0, 1, 0.0) for i, s in enumerate(subjects))

    monkeypatch.setattr(GpuOverRpc, "time", time)
    told = profiled(remote_job(tmp_path))
    # Two ops: 64x64 with the pattern, 64x4 dense only; each dense by our kernels and by PyTorch.
    assert (told["measured"], told["failed"]) == (1 + 2 + 2, [])
    assert asked == [(ADDRESS, 1)]
    assert timed == [(ADDRESS, 1, 2)]  # the network at each sparsity
    (table,) = (tmp_path / "db").iterdir()
    assert table.name == gpu_platform(GPU, dtype="bfloat16").name


def test_several_gpus_of_a_tracker_share_a_profile(tmp_path, asked, monkeypatch):
    started = []
    make = profiling.remote_gpu
    monkeypatch.setattr(profiling, "remote_gpu", lambda *args, **values: started.append(0) or make(*args, **values))
    monkeypatch.setattr(OpenJob, "rest", lambda self: "known")
    job = remote_job(tmp_path, platform__remote={"address": ADDRESS, "tracker_key": "h100", "devices": 2})
    assert estimate_profile(open_job(job)).seconds == pytest.approx(5 * 1.0 / 2)
    assert profiled(job)["measured"] == 5
    assert estimate_profile(open_job(job)).seconds == 0
    assert len(started) == 2


def test_a_gpu_is_not_asked_once_its_table_tells_what_it_is(tmp_path, asked):
    known = gpu_platform(GPU, dtype="bfloat16", name="there")
    write_platform(tmp_path / "db" / "there", known)
    assert open_job(remote_job(tmp_path, platform__name="there")).platform == known
    assert asked == []
    other = open_job(remote_job(tmp_path, platform__name="there", platform__dtype="float16")).platform
    assert (other.dtype, asked) == ("float16", [(ADDRESS, 1)])


def test_doctor_tells_what_the_gpu_of_a_job_is(tmp_path, asked):
    ended = pruneaug("doctor", "--job", remote_job(tmp_path), "--json")
    assert ended.code == 0, ended.err
    platform = gpu_platform(GPU, dtype="bfloat16")
    device = json.loads(ended.out)["device"]
    assert (device["address"], device["name"], device["arch"]) == (ADDRESS, "Fake GPU", "sm_80")
    assert (device["platform"], device["fingerprint"]) == (platform.name, platform.fingerprint)


@pytest.mark.slow
def test_a_job_is_profiled_and_exported_by_a_server(tmp_path, monkeypatch):
    pytest.importorskip("cloudpickle")
    import rpc_servers

    paths = [str(TESTS / "profiler" / "cuda"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    for folder in ("kernels", "profiler"):
        monkeypatch.syspath_prepend(TESTS / folder / "cuda")
    from fake_driver import fake_program
    from fake_gpu import fake_kernels

    monkeypatch.setattr("pruneaug.profiler.cuda.programs.find_spec", lambda package: None)  # no other kernel
    monkeypatch.setattr("pruneaug.profiler.remote.gpu_networks.compile_missing", fake_kernels)
    device = "fake_gpu:with_networks"
    fake = partial(remote_gpu, device=device, budget_s=0.0)
    for module in ("pruneaug.api.profiling", "pruneaug.profiler.remote.gpu"):
        monkeypatch.setattr(f"{module}.remote_gpu", fake)
    monkeypatch.setattr("pruneaug.api.job.GpuOverRpc", partial(GpuOverRpc, device=device))
    with rpc_servers.server(words=rpc_servers.GPU) as server:
        job = remote_job(
            tmp_path, server.address, platform__batch=16, platform__name="there",
            search__max_accuracy_loss=1.0, search__strategy="uniform",
        )  # fmt: skip
        layers = [layer.op for layer in open_job(job).network.layers]
        pruned = [cell for cell in wanted(layers, ["block:16x16"], [0.5]) if cell.pattern != "dense"]
        ProgramFolder(tmp_path / "kernels").write(fake_program(shapes_of_cells(pruned, "bfloat16", GPU.arch)[0]))
        told = profiled(job)
        searched = pruneaug("search", job, "--json")
        exported = pruneaug("export", tmp_path / "run", "--json")
    assert (told["measured"], told["failed"]) == (5, [])
    records = {(record.pattern, record.library): record for record in LatencyStore(tmp_path / "db" / "there").load()}
    ours = records["block:16x16", "tvm"]
    chunk, tile = parse_plan(ours.variant)
    assert f"c{chunk}-{tile}" == ours.variant
    assert 0 < ours.max_relative_error < 4e-3  # the kernel that was compiled here, run there
    assert (searched.code, exported.code) == (0, 0), (searched.err, exported.err)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    rows = {row["runtime"]: row for row in report["baselines"]}
    assert set(rows) == {"torch", "torch-compile", OWN_DENSE}
    assert all(row["error"] is None for row in rows.values())
    assert any("clocks were held down" in warning for warning in report["warnings"])
    assert report["best"]["latency_ms_measured"] < rows[OWN_DENSE]["latency_ms"]
    artifact = tmp_path / "run" / report["artifact"]
    saved = load_cuda_network(artifact, GPU.arch, torch.device("cpu"))  # it came back whole
    masks = read_checkpoint(tmp_path / "run" / "checkpoint").masks
    assert set(masks) == {layer.name for layer in saved.report.layers if layer.kernel}
