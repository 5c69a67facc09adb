"""Devices that hang, vanish or end sessions: servers of TVM's RPC on this machine; times are not looked at."""

import subprocess
import sys
import time
from contextlib import ExitStack, closing, suppress

import pytest

from pruneaug.errors import DeviceError
from pruneaug.latency.store import LatencyStore
from pruneaug.network.ops import LinearOp
from pruneaug.platforms import detect
from pruneaug.profiler.plan import cell_of, plan
from pruneaug.profiler.remote import session as sessions
from pruneaug.profiler.remote.chain import Chain
from pruneaug.profiler.remote.detect import detect_remote
from pruneaug.profiler.remote.facts import read_facts
from pruneaug.profiler.remote.measure import RemoteMeasurer, open_session
from pruneaug.profiler.remote.session import ConnectionLostError, Session, lost, tried
from pruneaug.profiler.run import REMOTE_MEASURER, profile_ops
from pruneaug.spec.platform import RemoteSpec

pytest.importorskip("cloudpickle")
pytest.importorskip("psutil")
import rpc_servers

THERE = RemoteSpec(address="there:1")
OPS = [LinearOp(8, 16, 16), LinearOp(8, 16, 32), LinearOp(8, 32, 16), LinearOp(8, 32, 32)]


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(sessions, "_PAUSE_S", 0.0)


def test_a_session_that_ends_as_it_begins_is_begun_again(at_once):
    left = [ConnectionLostError("gone")] * 2

    def begin():
        if left:
            raise left.pop()
        return "session"

    assert tried(THERE, begin) == "session"
    with pytest.raises(DeviceError, match="there:1 must stay connected, but its session ended at once, 3 times: gone"):
        tried(THERE, lambda: (_ for _ in ()).throw(ConnectionLostError("gone")))
    with pytest.raises(ZeroDivisionError):
        tried(THERE, lambda: 1 / 0)


@pytest.fixture(scope="module")
def platform(lasting):
    return detect_remote(lasting.spec(), threads=1)


@pytest.fixture(scope="module")
def sleeping(tmp_path_factory):
    """A library whose function sleeps ten minutes on the device."""
    folder = tmp_path_factory.mktemp("sleeping")
    source, library = folder / "sleeping.c", folder / "sleeping.so"
    source.write_text(
        "#include <unistd.h>\n"
        "int __tvm_ffi_pause(void* self, const void* args, int count, void* result) { sleep(600); return 0; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.mark.slow
def test_a_session_that_ends_while_the_device_is_asked_what_it_is_costs_nothing(lasting, platform, monkeypatch):
    from pruneaug.profiler.remote import measure

    def cut_once(session, remote):
        monkeypatch.setattr(measure, "read_facts", read_facts)
        lasting.kill_session()
        return read_facts(session, remote)

    monkeypatch.setattr(measure, "read_facts", cut_once)
    with closing(open_session(lasting.spec(), platform, 60.0)) as session:
        assert read_facts(session, lasting.spec()).arch == detect().arch


@pytest.mark.slow
def test_a_kernel_that_hangs_costs_its_cell(lasting, platform, sleeping, tmp_path, monkeypatch):
    hangs = iter([True])

    def time_or_hang(self, runs, *, untimed=0):
        if next(hangs, False):
            with lost():
                self._session.load(sleeping)["pause"]()
        return real(self, runs, untimed=untimed)

    real = Chain.time
    monkeypatch.setattr(Chain, "time", time_or_hang)
    cells = plan(OPS[:1], ["block:4x1"], [0.5], LatencyStore(tmp_path), ("tvm",))
    remote = lasting.spec(timeout_s=8).model_dump(mode="json")
    first, *others = RemoteMeasurer(platform, remote=remote, budget_s=0.001).measure(OPS[0], cells)
    assert "within timeout_s, 8 s, but its session ended" in first.error
    assert others
    assert [record.error for record in others] == [None] * len(others)


@pytest.mark.slow
def test_a_client_that_is_killed_while_the_device_computes_leaves_it_to_the_next(lasting, sleeping):
    client = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys\nfrom pathlib import Path\nfrom pruneaug.profiler.remote.session import Session\n"
            "from pruneaug.spec.platform import RemoteSpec\n"
            "session = Session(RemoteSpec(address=sys.argv[1], timeout_s=60), 10.0)\n"
            "pause = session.load(Path(sys.argv[2]))['pause']\nprint('begins', flush=True)\npause()",
            lasting.address, str(sleeping),
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert client.stdout.readline() == "begins\n"
    time.sleep(1.0)  # it may have begun: either way the next session must get the device
    client.kill()
    client.wait()
    with closing(Session(lasting.spec(), limit_s=60.0)) as session:
        assert read_facts(session, lasting.spec()).arch == detect().arch


@pytest.mark.slow
def test_a_device_of_a_tracker_that_is_lost_costs_no_cell_of_the_others(platform, tmp_path):
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado")

    def profile(spec, progress=None):
        return profile_ops(
            OPS, ["block:4x1"], [0.5], platform, LatencyStore(tmp_path), timeout_s=300.0, libraries=("tvm",),
            measurer=REMOTE_MEASURER, options={"remote": spec.model_dump(mode="json"), "budget_s": 0.001},
            workers=spec.devices, observed=tuple, progress=progress,
        )  # fmt: skip

    def measured():
        return [cell_of(record) for record in LatencyStore(tmp_path).load() if record.error is None]

    with rpc_servers.tracker() as tracker, ExitStack() as stack:
        registered = {"tracker": tracker.address, "key": "here"}
        first, _ = (stack.enter_context(rpc_servers.server(**registered)) for _ in range(2))
        spec = tracker.spec(tracker_key="here", devices=2, timeout_s=20)
        with suppress(DeviceError):  # who has lost it waits for the other one, which may be free in time
            profile(spec, lambda done, total, note: first.kill() if done == 1 else None)
        kept = measured()
        assert len(kept) >= 2 * len(OPS) - 2  # all but one op's
        result = profile(tracker.spec(tracker_key="here", timeout_s=20))
    assert (result.failed, result.reused) == ((), len(kept))
    assert len(measured()) == len(set(measured())) == 2 * len(OPS)
