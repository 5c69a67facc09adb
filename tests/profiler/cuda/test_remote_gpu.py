"""A GPU that is reached by RPC: a real server on this machine, whose measuring process has a fake GPU."""

import json
import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from fake_gpu import FAULTS, NAME, faulty, keep_empty_programs

from pruneaug.errors import DeviceError
from pruneaug.kernels.cuda.shapes import ROWS
from pruneaug.latency.store import LatencyStore
from pruneaug.network.ops import LinearOp
from pruneaug.platforms.cuda import gpu_platform
from pruneaug.profiler.cuda.cases import TORCH, Group, Subject, subjects_of
from pruneaug.profiler.cuda.cells import CellWorker
from pruneaug.profiler.cuda.profile import profile_gpu
from pruneaug.profiler.remote.gpu import remote_gpu

pytest.importorskip("cloudpickle")
pytest.importorskip("psutil")
import rpc_servers

pytestmark = pytest.mark.slow

GROUP = Group(LinearOp(40, 48, 64), "bfloat16", "block:64x16", 0.5)
OURS = {subject.variant.rpartition("-")[2]: subject for subject in subjects_of(GROUP, [], (ROWS,))}  # by their tile
GOOD, CRASHES, HANGS, CUTS = OURS
TORCH_ONLY = Subject(TORCH)
OPS = [LinearOp(16, 32, 64), LinearOp(16, 64, 32)]


@pytest.fixture(scope="module")
def environment():
    """What a server inherits: where the fake GPU is, and which of its kernels do harm."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv(FAULTS, json.dumps({CRASHES: "abort", HANGS: "hang", CUTS: "cut"}))
        yield


@pytest.fixture(scope="module")
def server(environment):
    with rpc_servers.server(words=rpc_servers.GPU) as started:
        yield started


def process_on(server, kernels, device="fake_gpu:faulty", index=0, **values):
    return remote_gpu(kernels, server.spec(**values), index=index, device=device, budget_s=0.0)


def measured(process, *subjects):
    return {record.subject: record for record in process.measure(GROUP, subjects, NAME)}


def test_kernels_are_uploaded_and_one_that_crashes_costs_itself(server, tmp_path):
    keep_empty_programs(tmp_path, GROUP)
    with process_on(server, tmp_path, index=2) as process:
        assert process.gpu() == faulty(2).gpu
        records = measured(process, OURS[GOOD], OURS[CRASHES], TORCH_ONLY)
        # The session has what was uploaded in it, and no folder holds another kernel.
        process.kernels = tmp_path / "empty"
        (lacking,) = measured(process, OURS[HANGS]).values()
    assert "must differ from float64" in records[OURS[GOOD]].error  # it was there, and computed nothing
    assert records[OURS[CRASHES]].error.startswith("the measuring process died of SIGABRT")
    assert (records[TORCH_ONLY].error, records[TORCH_ONLY].gpu) == (None, f"{NAME} 2")
    assert "must be compiled for sm_80" in lacking.error


def test_a_kernel_that_hangs_costs_itself(server, tmp_path):
    keep_empty_programs(tmp_path, GROUP)
    with process_on(server, tmp_path, timeout_s=10) as process:
        records = measured(process, OURS[HANGS], TORCH_ONLY)
    assert records[OURS[HANGS]].error == "the measuring process hung: it gave no result within 10 s"
    assert records[TORCH_ONLY].error is None


def test_a_session_that_ends_costs_nothing(server, tmp_path):
    with process_on(server, tmp_path) as process:
        first = measured(process, TORCH_ONLY)
        server.kill_session()
        second = measured(process, TORCH_ONLY)
    assert [records[TORCH_ONLY].error for records in (first, second)] == [None, None]


def test_sessions_that_always_end_stop_the_measurement(server, tmp_path):
    keep_empty_programs(tmp_path, GROUP)
    with (
        process_on(server, tmp_path) as process,
        pytest.raises(
            DeviceError, match=rf"3 sessions ended while {GROUP.op.key} was measured: .* is kept, and the sa"
        ),
    ):
        measured(process, TORCH_ONLY, OURS[CUTS])


def test_a_client_that_is_silent_loses_its_session_to_the_next(server, tmp_path):
    with process_on(server, tmp_path, timeout_s=4) as process, process_on(server, tmp_path) as other:
        process.gpu()
        (speaker,) = [child for child in psutil.Process().children() if "gpu_worker" in " ".join(child.cmdline())]
        speaker.send_signal(signal.SIGSTOP)  # its connection stays
        assert other.gpu().name == NAME


def test_a_session_is_kept_while_nothing_is_asked(monkeypatch):
    from pruneaug.profiler.remote import gpu_worker

    reading, writing = os.pipe()

    class Kept:
        ready = {"event": "ready"}  # noqa: RUF012 - nobody changes it
        shown = 0

        def __init__(self, *arguments):
            pass

        def show_life(self):
            self.shown += 1
            if self.shown == 3:
                os.close(writing)  # the parent ends

    told = []
    monkeypatch.setattr(gpu_worker, "RemoteGpu", Kept)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        gpu_worker.serve(told.append, {"remote": {"address": "there:1", "timeout_s": 0.1}, "device": "", "index": 0})
    assert told == [{"event": "ready"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "from importlib import metadata\nversion = metadata.version\n"
            "metadata.version = lambda package: '0.0.1' if package == 'pruneaug' else version(package)",
            r"pruneaug: 0\.0\.1 here, .* there; install the same",
        ),
        (
            "import pruneaug.kernels.cuda.program as program; program.generator_digest = lambda: 'abc'",
            "the generator of kernels: abc here, .* there; install the same on both",
        ),
    ],
    ids=["package", "generator"],
)
def test_another_version_there_is_refused(server, tmp_path, monkeypatch, change, message):
    (tmp_path / "sitecustomize.py").write_text(change)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    with (
        process_on(server, tmp_path) as process,
        pytest.raises(DeviceError, match=f"{server.address} must have this version of pruneaug, but .*{message}"),
    ):
        process.gpu()


def test_a_machine_without_a_gpu_is_refused(server, tmp_path):
    with (
        process_on(server, tmp_path, device="fake_gpu:absent") as process,
        pytest.raises(DeviceError, match=f"on the machine at {server.address} device 'cuda' needs a GPU that PyT"),
    ):
        process.gpu()


def test_a_server_that_was_not_started_for_gpus_is_refused(lasting, tmp_path):
    with (
        process_on(lasting, tmp_path) as process,
        pytest.raises(DeviceError, match=r"was not started for that; start it with `python device_server\.py --gpu`"),
    ):
        process.gpu()


def test_a_tracker_may_lend_the_machine(environment, tmp_path):
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
    with (
        rpc_servers.tracker() as tracker,
        rpc_servers.server(words=rpc_servers.GPU, tracker=tracker.address, key="gpu"),
        process_on(tracker, tmp_path, tracker_key="gpu") as process,
    ):
        assert process.gpu().name == NAME


def test_several_gpus_of_a_tracker_share_the_ops(environment, tmp_path, monkeypatch):
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
    monkeypatch.setattr("pruneaug.profiler.cuda.programs.find_spec", lambda package: None)  # PyTorch's layers only
    both, measure, measured_by = threading.Barrier(2), CellWorker.measure, {}

    def wait_then_measure(self, task):
        measured_by[task.op] = self
        both.wait(timeout=120)  # each has an op
        return measure(self, task)

    monkeypatch.setattr(CellWorker, "measure", wait_then_measure)
    with rpc_servers.tracker() as tracker, ExitStack() as stack:
        for _ in range(2):
            words = {"words": rpc_servers.GPU, "tracker": tracker.address, "key": "gpu"}
            stack.enter_context(rpc_servers.server(**words))
        values = {"tracker_key": "gpu", "devices": 3}
        processes = [stack.enter_context(process_on(tracker, tmp_path, **values)) for _ in range(3)]
        platform = gpu_platform(faulty().gpu, dtype="bfloat16", name="fake")
        result = profile_gpu(OPS, [], [], platform, LatencyStore(tmp_path / "table"), processes)
    assert (result.measured, result.failed) == (4, ())
    assert len(set(measured_by.values())) == len(OPS)  # the third has nothing to do, and was not started


def test_a_gpu_of_a_tracker_that_is_not_there_leaves_the_work_to_the_others(environment, tmp_path, monkeypatch):
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
    monkeypatch.setattr("pruneaug.profiler.cuda.programs.find_spec", lambda package: None)  # PyTorch's layers only
    with rpc_servers.tracker() as tracker, ExitStack() as stack:
        stack.enter_context(rpc_servers.server(words=rpc_servers.GPU, tracker=tracker.address, key="gpu"))
        values = {"tracker_key": "gpu", "devices": 2, "timeout_s": 5}
        processes = [stack.enter_context(process_on(tracker, tmp_path, **values)) for _ in range(2)]
        platform = gpu_platform(faulty().gpu, dtype="bfloat16", name="fake")
        result = profile_gpu(OPS, [], [], platform, LatencyStore(tmp_path / "table"), processes)
    assert (result.measured, result.failed) == (4, ())
    assert any(
        warning.startswith("one of 2 GPUs took no part: a device of tracker_key 'gpu' must be free")
        for warning in result.warnings
    )


def test_a_server_that_is_killed_ends_the_profile_and_the_next_one_resumes(server, tmp_path, monkeypatch):
    monkeypatch.setattr("pruneaug.profiler.cuda.programs.find_spec", lambda package: None)  # PyTorch's layers only
    platform = gpu_platform(faulty().gpu, dtype="bfloat16", name="fake")
    store = LatencyStore(tmp_path / "table")

    def profile(on, progress=None):
        with process_on(on, tmp_path / "kernels") as process:
            return profile_gpu(OPS, [], [], platform, store, [process], progress=progress)

    def kill(done, total, note):
        if done == 2:
            server.kill()  # the last test that needs it

    with pytest.raises(DeviceError, match=rf"after 3 tries {server.address} does not: .* --gpu`.* the same command"):
        profile(server, kill)
    assert [record.op for record in store.load() if record.error is None] == [OPS[0]] * 2
    with rpc_servers.server(server.port, words=rpc_servers.GPU) as again:
        result = profile(again)
    assert (result.reused, result.measured, result.failed) == (2, 2, ())
