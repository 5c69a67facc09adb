"""Whole networks on a device, which is a server of TVM's RPC on this machine; times are not looked at."""

import pytest
import torch
from torch import nn

from pruneaug.errors import DeviceError
from pruneaug.network.layers import find_layers
from pruneaug.profiler.network import Subject
from pruneaug.profiler.remote.detect import detect_remote
from pruneaug.profiler.remote.network import time_remotely
from pruneaug.runtime.graph import export_program
from pruneaug.runtime.network import load_network
from pruneaug.spec.platform import RemoteSpec

pytest.importorskip("cloudpickle")
pytest.importorskip("psutil")
import rpc_servers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def platform(lasting):
    return detect_remote(lasting.spec(), threads=1)


def make_subject(**values):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    inputs = (torch.randn(2, 3, 6, 6),)
    subject = Subject("pruneaug-dense", model, export_program(model, inputs), find_layers(model, inputs), **values)
    return subject, model, inputs


def test_a_network_runs_there_and_its_library_is_kept(lasting, platform, tmp_path):
    path = tmp_path / "artifact" / "network.so"
    subject, model, inputs = make_subject(save_to=path)
    broken = Subject(
        "pruneaug-sparse", subject.model, subject.program, subject.network, masks={"0": torch.ones(1, dtype=torch.bool)}
    )
    told = []

    def progress(done, total, note):
        told.append((done, total))
        if done == 3:  # between two turns
            lasting.kill_session()

    good, bad = time_remotely(
        [subject, broken], platform, lasting.spec(), rounds=3, turn_s=0.001, progress=progress
    )  # fmt: skip
    assert good.error is None
    assert 0 < good.p10_ms <= good.latency_ms <= good.p90_ms
    assert good.max_relative_error < 1e-5
    assert good.runs >= 9
    assert good.save_error is None
    torch.testing.assert_close(load_network(path)(*inputs), model(*inputs).detach(), atol=1e-5, rtol=1e-5)
    assert "bool mask of the same shape" in bad.error
    assert told == [(done, 5) for done in range(6)]


def test_a_server_that_is_killed_is_an_error_and_the_same_call_goes_on_with_another(platform, tmp_path):
    subject, _, _ = make_subject(save_to=tmp_path / "network.so")
    with rpc_servers.server(words=rpc_servers.LASTING) as first:

        def kill(done, total, note):
            if done == 2:  # between two turns
                first.kill()

        with pytest.raises(DeviceError, match=f"after 3 tries {first.address} does not"):
            time_remotely([subject], platform, first.spec(timeout_s=5), rounds=3, turn_s=0.001, progress=kill)
    with rpc_servers.server(first.port, words=rpc_servers.LASTING) as again:
        (time,) = time_remotely([subject], platform, again.spec(), rounds=1, turn_s=0.001)
    assert (time.error, time.save_error) == (None, None)
    assert (tmp_path / "network.so").exists()


def test_a_device_that_is_not_there_is_an_error_and_no_library_is_left(platform, tmp_path):
    remote = RemoteSpec(address=f"127.0.0.1:{rpc_servers.free_port()}", timeout_s=5)
    path = tmp_path / "network.so"
    subject, _, _ = make_subject(save_to=path)
    with pytest.raises(DeviceError, match="after 3 tries"):
        time_remotely([subject], platform, remote, rounds=0)
    assert not path.exists()
