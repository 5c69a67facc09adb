"""Jobs whose platform is a GPU of another machine: what is asked of it, and a profile over a real server of RPC."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
from computed_gpu import GPU, ComputedProcess
from toy_flow import pruneaug, write_job

from pruneaug.api import profiling
from pruneaug.api.job import open_job
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.variants import parse_cuda_variant
from pruneaug.latency.store import LatencyStore
from pruneaug.platforms import write_platform
from pruneaug.platforms.cuda import gpu_platform
from pruneaug.profiler.cuda.cells import shapes_of_cells
from pruneaug.profiler.plan import wanted
from pruneaug.profiler.remote.gpu import NETWORKS_NOT_TIMED, remote_gpu

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


def test_a_profile_measures_both_libraries_there_and_says_that_networks_are_not_timed(tmp_path, asked):
    told = profiled(remote_job(tmp_path))
    # Two ops: 64x64 with the pattern, 64x4 dense only; each dense by our kernels and by PyTorch.
    assert (told["measured"], told["failed"]) == (1 + 2 + 2, [])
    assert told["warnings"][-1] == NETWORKS_NOT_TIMED
    assert asked == [(ADDRESS, 1)]
    (table,) = (tmp_path / "db").iterdir()
    assert table.name == gpu_platform(GPU, dtype="bfloat16").name


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
def test_a_job_is_profiled_by_a_server_with_kernels_of_this_machine(tmp_path, monkeypatch):
    pytest.importorskip("cloudpickle")
    import rpc_servers

    paths = [str(TESTS / "profiler" / "cuda"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.syspath_prepend(TESTS / "kernels" / "cuda")
    from fake_driver import fake_program

    monkeypatch.setattr("pruneaug.profiler.cuda.programs.find_spec", lambda package: None)  # no other kernel
    fake = partial(remote_gpu, device="fake_gpu:emulated", budget_s=0.0)
    for module in ("pruneaug.api.profiling", "pruneaug.profiler.remote.gpu"):
        monkeypatch.setattr(f"{module}.remote_gpu", fake)
    with rpc_servers.server(words=rpc_servers.GPU) as server:
        job = remote_job(tmp_path, server.address, platform__batch=16, platform__name="there")
        layers = [layer.op for layer in open_job(job).network.layers]
        pruned = [cell for cell in wanted(layers, ["block:16x16"], [0.5]) if cell.pattern != "dense"]
        ProgramFolder(tmp_path / "kernels").write(fake_program(shapes_of_cells(pruned, "bfloat16", GPU.arch)[0]))
        told = profiled(job)
    assert (told["measured"], told["failed"]) == (5, [])
    records = {(record.pattern, record.library): record for record in LatencyStore(tmp_path / "db" / "there").load()}
    ours = records["block:16x16", "tvm"]
    assert str(parse_cuda_variant(ours.variant)) == ours.variant
    assert 0 < ours.max_relative_error < 4e-3  # the kernel that was compiled here, run there
