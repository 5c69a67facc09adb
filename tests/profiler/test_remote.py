"""Kernels measured on a device, which is a server of TVM's RPC on this machine; times are not looked at."""

import socket
import struct
import threading
from contextlib import closing
from dataclasses import replace

import pytest
from tvm.rpc.base import RPC_CODE_MISMATCH

from pruneaug.errors import DeviceError
from pruneaug.latency.store import LatencyStore
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.platforms import detect
from pruneaug.profiler.plan import cell_of
from pruneaug.profiler.remote.detect import detect_remote
from pruneaug.profiler.remote.facts import read_facts
from pruneaug.profiler.remote.session import Session, in_time
from pruneaug.profiler.run import REMOTE_MEASURER, profile_ops
from pruneaug.spec.platform import RemoteSpec

pytest.importorskip("cloudpickle")
pytest.importorskip("psutil")
import rpc_servers

pytestmark = pytest.mark.slow

OPS = [LinearOp(8, 16, 16), Conv2dOp(1, 4, 6, 6, 8, (3, 3), stride=(2, 2), padding=(1, 1, 1, 1))]


@pytest.fixture(scope="module")
def plain():
    """A device as TVM's documentation starts it."""
    with rpc_servers.server() as server:
        yield server


@pytest.fixture(scope="module")
def platform(plain):
    return detect_remote(plain.spec(), threads=1)


def profile(folder, remote, platform, ops=OPS, progress=None):
    return profile_ops(
        ops, ["block:4x1"], [0.5], platform, LatencyStore(folder), timeout_s=300.0, libraries=("tvm",),
        measurer=REMOTE_MEASURER, options={"remote": remote.model_dump(mode="json"), "budget_s": 0.001},
        workers=remote.devices, observed=tuple, progress=progress,
    )  # fmt: skip


def ask(remote):
    """What a device tells, in this process."""
    with closing(Session(remote, limit_s=60.0)) as session:
        return read_facts(session, remote)


def cells(folder):
    return sorted(str(cell_of(record)) for record in LatencyStore(folder).load() if record.error is None)


def test_a_device_is_detected_from_its_own_files(plain, platform):
    here = detect(1)
    assert platform.hardware_differences(here) == ()
    assert platform.fingerprint == here.fingerprint
    assert platform.mcpu
    assert platform.triple.startswith(here.arch)


def test_kernels_are_measured_there_and_right(plain, platform, tmp_path):
    result = profile(tmp_path, plain.spec(), platform)
    assert (result.measured, result.failed) == (4, ())
    for record in LatencyStore(tmp_path).load():
        assert 0 < record.p10_us <= record.latency_us <= record.p90_us
        assert record.max_relative_error < 1e-5
        assert record.variant
    assert profile(tmp_path, plain.spec(), platform).reused == 4


def test_another_device_than_that_of_the_table_is_refused(plain, platform, tmp_path):
    other = replace(platform, name="other", cpu="another CPU")
    with pytest.raises(DeviceError, match=r"must be the platform 'other', but it is another one: cpu: another CPU"):
        profile(tmp_path, plain.spec(), other)
    assert cells(tmp_path) == []


def test_another_architecture_than_that_of_the_device_is_refused(plain):
    other = "x86_64" if detect().arch == "aarch64" else "aarch64"
    with pytest.raises(DeviceError, match=rf"must be the device's, {detect().arch}, but got {other}"):
        ask(plain.spec(hardware={"arch": other}))


def test_a_device_that_is_not_there_is_an_error_with_its_address():
    address = f"127.0.0.1:{rpc_servers.free_port()}"
    with pytest.raises(DeviceError, match=rf"after 3 tries {address} does not: .*refused.*tvm.exec.rpc_server"):
        ask(RemoteSpec(address=address, timeout_s=5))


def test_a_device_that_is_in_use_is_waited_for_only_so_long(plain):
    with socket.create_connection(("127.0.0.1", plain.port)) as other:  # says nothing: the server waits for its key
        with pytest.raises(DeviceError, match=r"must be free within timeout_s, 1 s, but it is not"):
            ask(plain.spec(timeout_s=1))
        other.sendall(b"\0\0\0\0")
    assert ask(plain.spec()).arch == detect().arch


def test_a_server_is_not_taken_for_a_tracker(plain):
    with pytest.raises(DeviceError, match=r"must be a TVM RPC tracker, but .* leave tracker_key out"):
        ask(plain.spec(tracker_key="any", timeout_s=5))


def test_what_is_no_server_at_all_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=lambda: other.accept()[0].sendall(b"HTTP/1.1"), daemon=True).start()
        with pytest.raises(DeviceError, match=r"must be a TVM RPC server, but .* is something else"):
            ask(RemoteSpec(address=f"127.0.0.1:{other.getsockname()[1]}", timeout_s=20))


def test_a_server_with_a_key_of_its_own_is_reached_by_a_tracker_only():
    def refuse(listener):
        listener.accept()[0].close()  # whoever asks whether it is free
        client, _ = listener.accept()
        _, size = struct.unpack("<ii", client.recv(8, socket.MSG_WAITALL))
        client.recv(size, socket.MSG_WAITALL)
        client.sendall(struct.pack("<i", RPC_CODE_MISMATCH))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, args=(listener,), daemon=True).start()
        with pytest.raises(DeviceError, match="was started with a key, so only a tracker leads to it"):
            ask(RemoteSpec(address=f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=20))


def test_a_call_is_waited_for_only_so_long():
    go_on = threading.Event()
    with pytest.raises(TimeoutError):
        in_time(go_on.wait, 0.01)
    go_on.set()
    assert in_time(go_on.wait, 30.0)
    with pytest.raises(ZeroDivisionError):
        in_time(lambda: 1 / 0, 30.0)


def test_a_session_that_ends_is_begun_again_and_no_cell_is_lost(lasting, platform, tmp_path):
    def kill_once(done, total, note):
        if done == 1:
            lasting.kill_session()

    result = profile(tmp_path, lasting.spec(), platform, progress=kill_once)
    assert (result.measured, result.failed) == (4, ())


def test_a_server_that_is_killed_ends_the_profile_and_the_next_one_resumes(plain, platform, tmp_path):
    def kill(done, total, note):
        if done == 2:
            plain.kill()

    with pytest.raises(DeviceError, match=rf"after 3 tries {plain.address} does not"):
        profile(tmp_path, plain.spec(), platform, progress=kill)
    kept = cells(tmp_path)
    assert 2 <= len(kept) < 4
    with rpc_servers.server(plain.port):  # the last test that needs it
        result = profile(tmp_path, plain.spec(), platform)
    assert (result.reused, result.measured, result.failed) == (len(kept), 4 - len(kept), ())


def test_devices_of_a_tracker_share_the_ops(platform, tmp_path):
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
    with rpc_servers.tracker() as tracker:
        with pytest.raises(DeviceError, match="must have devices of tracker_key 'here', but has none"):
            ask(tracker.spec(tracker_key="here"))
        registered = {"tracker": tracker.address, "key": "here"}
        with rpc_servers.server(**registered), rpc_servers.server(**registered):
            with pytest.raises(DeviceError, match="tracker_key 'there', but has here"):
                ask(tracker.spec(tracker_key="there"))
            remote = tracker.spec(tracker_key="here", devices=2)
            in_use = pytest.raises(DeviceError, match=r"must be free within timeout_s, 1 s, but none is")
            with closing(Session(remote, 60.0)), closing(Session(remote, 60.0)), in_use:
                ask(tracker.spec(tracker_key="here", timeout_s=1))
            assert profile(tmp_path, remote, platform).measured == 4
