"""Whole networks on a GPU that is reached by RPC: a real server on this machine, whose GPU is emulated."""

import os
import pickle
import platform
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_gpu import fake_kernels, faulty
from torch import nn

from pruneaug.errors import DeviceError, InputError, MeasurementError
from pruneaug.network.layers import find_layers
from pruneaug.platforms.cuda import gpu_platform
from pruneaug.profiler.cuda import worker
from pruneaug.profiler.local_gpu import GpuNetworks
from pruneaug.profiler.network import Subject
from pruneaug.profiler.remote import gpu_networks
from pruneaug.profiler.remote.gpu_networks import GpuOverRpc, packed
from pruneaug.sparsity.masks import block_mask
from pruneaug.sparsity.patterns import parse_pattern

pytest.importorskip("cloudpickle")
pytest.importorskip("psutil")
import rpc_servers

X = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
PLATFORM = gpu_platform(faulty().gpu, dtype="float32", name="fake")


class OnlyHere(nn.Module):
    """A network of the user's own, whose module the other machine does not have."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 48), nn.Linear(48, 5)

    def forward(self, x):
        return self.head(activated(self.hidden(x)))


class Aborts(nn.Module):
    def forward(self, x):
        os.abort()


def activated(x):
    return torch.relu(x)


def subject(model, runtime="torch", **values):
    return Subject(runtime, model, SimpleNamespace(example_inputs=((X,), {})), **values)


def pruned(model, save_to=None):
    """With our kernel for its hidden layer."""
    (layer, *_) = find_layers(model, (X,)).layers
    weight = model.hidden.weight.detach()
    scores = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1))
    masks = {layer.name: block_mask(scores, parse_pattern("block:16x16"), 0.5)}
    model.hidden.weight.data *= masks[layer.name]
    return subject(model, "pruneaug-sparse", masks=masks, save_to=save_to)


@pytest.fixture(scope="module")
def server():
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        with rpc_servers.server(words=rpc_servers.GPU) as started:
            yield started


@pytest.fixture(autouse=True)
def _fake_kernels(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_networks, "compile_missing", fake_kernels)
    monkeypatch.chdir(tmp_path)


def gpu_of(server, **values):
    return GpuOverRpc(server.spec(**values), device="fake_gpu:with_networks")


@pytest.mark.slow
def test_networks_of_the_users_own_run_there_and_come_back_saved(server, tmp_path):
    ours = pruned(OnlyHere(), tmp_path / "folder" / "network.safetensors")
    said, gpu = [], gpu_of(server)
    (tmp_path / "folder").mkdir()
    first, second, third = gpu.time(
        [subject(OnlyHere()), subject(nn.Linear(3, 5)), ours],
        PLATFORM,
        rounds=1,
        progress=lambda *told: said.append(told),
    )
    assert first.error is None
    assert first.latency_ms > 0
    assert "shapes cannot be multiplied" in second.error
    assert (third.error, third.save_error) == (None, None)
    assert third.max_relative_error < 1e-5
    assert ours.save_to.stat().st_size > 0
    assert {path.suffix for path in (tmp_path / "cuda-kernels").rglob("*.*")} == {".cubin", ".json"}
    assert said[0][2] == "sending the networks"
    assert said[-1] == (3, 4, "measuring")
    assert gpu.warnings() == ("clocks were held down by power limit; ratios within a run still compare",)


@pytest.mark.slow
def test_a_file_that_cannot_be_written_here_is_said(server, tmp_path):
    (tmp_path / "file").write_text("")
    (time,) = gpu_of(server).time([pruned(OnlyHere(), tmp_path / "file" / "network")], PLATFORM, rounds=0)
    assert "file" in time.save_error


@pytest.mark.slow
def test_a_session_that_ends_costs_nothing(server):
    killed = threading.Event()

    def kill(done, total, note):
        if note == "measuring" and not killed.is_set():
            killed.set()
            server.kill_session()

    times = gpu_of(server).time([subject(OnlyHere()), subject(OnlyHere())], PLATFORM, rounds=50, progress=kill)
    assert killed.is_set()
    assert [time.error for time in times] == [None, None]


@pytest.mark.slow
def test_a_server_that_is_killed_is_an_error_and_the_same_call_goes_on_with_another(server, tmp_path):
    ours = pruned(OnlyHere(), tmp_path / "network.safetensors")
    with rpc_servers.server(words=rpc_servers.GPU) as first, pytest.raises(DeviceError, match="after 3 tries"):
        gpu_of(first, timeout_s=5).time(
            [ours], PLATFORM, rounds=500,
            progress=lambda done, total, note: first.kill() if note == "measuring" else None,
        )  # fmt: skip
    (time,) = gpu_of(server).time([ours], PLATFORM, rounds=1)
    assert (time.error, time.save_error) == (None, None)
    assert ours.save_to.stat().st_size > 0


@pytest.mark.slow
def test_sessions_that_always_end_are_an_error(server):
    with pytest.raises(DeviceError, match=r"must stay connected while networks run, but its session ended 3 times"):
        gpu_of(server).time(
            [subject(OnlyHere())], PLATFORM, rounds=500,
            progress=lambda done, total, note: note == "measuring" and server.kill_session(),
        )  # fmt: skip


@pytest.mark.slow
def test_a_process_that_crashes_is_an_error(server):
    with pytest.raises(MeasurementError, match=f"machine at {server.address}, but the process that .* died of SIGABRT"):
        gpu_of(server).time([subject(Aborts())], PLATFORM, rounds=1)


@pytest.mark.slow
def test_what_the_machine_lacks_is_named(server, monkeypatch):
    monkeypatch.setattr(gpu_networks, "_by_value", lambda cloudpickle: nullcontext())
    with pytest.raises(
        DeviceError,
        match=rf"the machine at {server.address} must have the packages of the network, .* but ModuleNotFoundError",
    ):
        gpu_of(server).time([subject(OnlyHere())], PLATFORM, rounds=1)


@pytest.mark.slow
def test_another_gpu_than_that_of_the_platform_is_refused(server):
    other = gpu_platform(replace(faulty().gpu, name="Another", multiprocessors=7), dtype="float32", name="other")
    with pytest.raises(DeviceError, match="the GPU must be the platform 'other', but it is another one"):
        gpu_of(server).time([subject(OnlyHere())], other, rounds=1)


def test_a_network_that_cannot_be_pickled_is_an_error():
    model = OnlyHere()
    model.lock = threading.Lock()
    with pytest.raises(InputError, match=r"must be pickled to run on a remote GPU, but it cannot be \(TypeError"):
        packed(GpuNetworks.of([subject(model)], "float32", 1))


def test_only_what_is_not_installed_goes_with_its_code():
    data = packed(GpuNetworks.of([subject(OnlyHere()), subject(nn.Linear(2, 2))], "float32", 1))
    assert b"activated" in data
    names = {
        name for name in (b"test_remote_gpu_networks", b"pruneaug.profiler.local_gpu", b"torch.nn") if name in data
    }
    assert {b"pruneaug.profiler.local_gpu", b"torch.nn"} <= names
    assert isinstance(pickle.loads(data), GpuNetworks)


@pytest.mark.parametrize(("other_minor", "refused"), [(0, False), (1, True)])
def test_code_of_another_python_is_refused(tmp_path, other_minor, refused):
    major, minor, _ = map(int, platform.python_version_tuple())
    (tmp_path / "networks").write_bytes(packed(GpuNetworks.of([subject(OnlyHere())], "float32", 1)))
    version = f"{major}.{minor + other_minor}.99"
    if refused:
        with pytest.raises(
            InputError, match=rf"must have Python {major}\.{minor + 1}, as the one that sends them, but"
        ):
            worker._unpacked(tmp_path / "networks", version)
    else:
        assert worker._unpacked(tmp_path / "networks", version).dtype == "float32"
