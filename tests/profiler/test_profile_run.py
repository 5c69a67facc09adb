import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pruneaug.errors import LatencyTableError, MeasurementError, RunError, StorageError
from pruneaug.latency.store import LatencyStore
from pruneaug.network.ops import LinearOp
from pruneaug.platforms import write_platform
from pruneaug.profiler import process
from pruneaug.profiler.plan import cell_of, wanted
from pruneaug.profiler.run import profile_ops
from pruneaug.testing.platform import ANALYTIC_MEASURER, ANALYTIC_PLATFORM, analytic_record

OPS = [LinearOp(4, 64, 64), LinearOp(4, 64, 128)]
PATTERNS, SPARSITIES = ["block:8x1", "block:4x1"], [0.5, 0.9]
CELLS = wanted(OPS, PATTERNS, SPARSITIES)


def profile(folder, *, ops=OPS, platform=ANALYTIC_PLATFORM, timeout_s=30.0, measurer=ANALYTIC_MEASURER, **values):
    progress, dense_only = values.pop("progress", None), values.pop("dense_only", ())
    return profile_ops(
        ops,
        PATTERNS,
        SPARSITIES,
        platform,
        LatencyStore(folder),
        timeout_s=timeout_s,
        measurer=measurer,
        dense_only=dense_only,
        options=values,
        progress=progress,
    )


def stored(folder):
    return Counter(cell_of(record) for record in LatencyStore(folder).load() if record.error is None)


def errors(result):
    return {(record.op, record.pattern, record.sparsity): record.error for record in result.failed}


def test_ops_that_stay_dense_are_measured_with_no_pattern(tmp_path):
    assert profile(tmp_path, dense_only=OPS[:1]).measured == 2 + 6
    assert stored(tmp_path).keys() == {cell for cell in CELLS if cell.op == OPS[1] or cell.pattern == "dense"}
    again = profile(tmp_path)
    assert (again.measured, again.reused) == (4, 8)


def test_a_profile_measures_every_cell_once_and_the_same_again_measures_nothing(tmp_path):
    log, folder, seen = tmp_path / "log", tmp_path / "db", []
    first = profile(folder, log=str(log), progress=lambda *values: seen.append(values))
    assert (first.measured, first.reused, first.failed) == (12, 0, ())
    records = LatencyStore(folder).load()
    assert sorted(map(str, records)) == sorted(str(analytic_record(cell, ANALYTIC_PLATFORM)) for cell in CELLS)
    assert [values[:2] for values in seen] == [(number, 12) for number in range(1, 13)]
    assert seen[2][2] == "linear-t4-i64-o64 block:8x1@0.5 tvm"
    second = profile(folder, log=str(log), progress=lambda *values: pytest.fail("nothing was to be measured"))
    assert (second.measured, second.reused, second.failed) == (0, 12, ())
    assert len(log.read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("fault", "message"),
    [("crash", "died of SIGABRT"), ("hang", r"hung: it gave no result within 1\.5 s"), ("raise", "RuntimeError: told")],
)
def test_a_cell_that_always_fails_is_recorded_alone_and_the_profile_goes_on(tmp_path, fault, message):
    result = profile(tmp_path, ops=OPS[:1], timeout_s=1.5, faults={"block:8x1@0.9": fault})
    ((cell, error),) = errors(result).items()
    assert cell == (OPS[0], "block:8x1", 0.9)
    assert re.search(message, error)
    assert (result.measured, result.reused) == (5, 0)
    assert set(stored(tmp_path)) == {cell for cell in CELLS[:6] if (cell.pattern, cell.sparsity) != ("block:8x1", 0.9)}
    again = profile(tmp_path, ops=OPS[:1])
    assert (again.measured, again.reused, again.failed) == (1, 5, ())


@pytest.mark.parametrize("number", [1, 6, 12])
def test_a_crash_that_happens_once_costs_no_cell(tmp_path, number):
    result = profile(tmp_path / "db", log=str(tmp_path / "log"), faults={str(number): "crash"})
    assert (result.measured, result.failed) == (12, ())
    assert stored(tmp_path / "db") == Counter(CELLS)


def test_errors_and_missing_records_of_the_measurer_are_kept_as_errors(tmp_path):
    result = profile(tmp_path, ops=OPS[:1], faults={"block:8x1@0.5": "error", "block:4x1@0.9": "skip"})
    assert errors(result) == {
        (OPS[0], "block:8x1", 0.5): "told to fail",
        (OPS[0], "block:4x1", 0.9): "the measurer gave no record for this cell",
    }
    assert result.measured == 4


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_profile_run import profile
from pathlib import Path
profile(Path({folder!r}), log={log!r}, delay_s=0.2)
"""


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("kind", "after"), [(signal.SIGKILL, 1), (signal.SIGKILL, 5), (signal.SIGINT, 5)])
def test_a_killed_profile_loses_no_record_and_repeats_none(tmp_path, kind, after):
    folder, log = tmp_path / "db", tmp_path / "log"
    code = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder), log=str(log))
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_for(lambda: lines(folder / "tvm.jsonl") >= after)
    workers = children(parent.pid)
    parent.send_signal(kind)
    parent.wait()
    assert len(workers) == 1
    wait_for(lambda: not is_running(workers[0]))
    before = stored(folder)
    assert after <= len(before) < len(CELLS)
    result = profile(folder, log=str(log))
    assert (result.measured, result.reused, result.failed) == (len(CELLS) - len(before), len(before), ())
    assert stored(folder) == Counter(CELLS)
    assert lines(log) <= len(CELLS) + 2  # begun again: the cell in flight, and one whose record was on its way


def test_a_profile_after_a_cut_line_measures_that_cell_again(tmp_path):
    profile(tmp_path)
    path = tmp_path / "tvm.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.warns(RuntimeWarning, match="cut short"):
        result = profile(tmp_path)
    assert (result.measured, result.reused) == (1, 11)
    assert stored(tmp_path) == Counter(CELLS)


def test_a_full_disk_stops_the_profile_with_a_storage_error(tmp_path, monkeypatch):
    write_platform(tmp_path, ANALYTIC_PLATFORM)
    append, kept = LatencyStore.append, []

    def append_three(self, record):
        if len(kept) == 3:
            (self.folder / "torch.jsonl").unlink()
            (self.folder / "torch.jsonl").symlink_to("/dev/full")
            record = replace(record, library="torch")
        kept.append(record)
        append(self, record)

    monkeypatch.setattr(LatencyStore, "append", append_three)
    with pytest.raises(StorageError, match=r"torch\.jsonl: No space left on device; .*make room"):
        profile(tmp_path)
    monkeypatch.undo()
    (tmp_path / "torch.jsonl").unlink()
    assert len(stored(tmp_path)) == 2
    assert profile(tmp_path).measured == 10


def test_a_disk_too_full_for_a_temporary_file_is_a_storage_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(StorageError, match="cannot write a temporary file"):
        profile(tmp_path / "db")


def test_another_machines_store_is_refused_before_anything_is_measured(tmp_path):
    write_platform(tmp_path, replace(ANALYTIC_PLATFORM, cpu="another"))
    with pytest.raises(LatencyTableError, match="cpu: analytic here, another there"):
        profile(tmp_path)
    assert os.listdir(tmp_path) == ["platform.json"]


def test_a_broken_store_is_refused_before_anything_is_measured(tmp_path):
    write_platform(tmp_path, ANALYTIC_PLATFORM)
    (tmp_path / "tvm.jsonl").write_text("{}\n")
    with pytest.raises(LatencyTableError, match=r"tvm\.jsonl:1"):
        profile(tmp_path)


def test_two_profiles_of_one_folder_at_once_are_refused(tmp_path):
    write_platform(tmp_path, ANALYTIC_PLATFORM)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(RunError, match=r"only one process may profile into .* wait until it ends"):
        profile(tmp_path)
    os.close(descriptor)
    assert profile(tmp_path, ops=[]).measured == 0


@pytest.mark.parametrize(
    ("measurer", "values", "message"),
    [
        ("no_such_module:Measurer", {}, "no_such_module:Measurer' does not"),
        ("pruneaug.testing.platform:Missing", {}, "Missing' does not"),
        ("no-colon", {}, "must read `package.module:attr`"),
        (ANALYTIC_MEASURER, {"wrong": 1}, "wrong"),
    ],
)
def test_a_measurer_that_does_not_start_ends_the_profile_at_once(tmp_path, measurer, values, message):
    with pytest.raises(MeasurementError, match=f"(?s)must start, but it ended with exit status 1: .*{message}.*doctor"):
        profile(tmp_path, measurer=measurer, **values)
    assert stored(tmp_path) == Counter()


def test_a_worker_that_hangs_before_it_is_ready_ends_the_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_START_S", 0.05)
    with pytest.raises(MeasurementError, match=r"must start, but it hung: it gave no result within 0\.05 s"):
        profile(tmp_path, timeout_s=0.01)


def test_the_worker_runs_with_the_platforms_threads():
    environment = process.worker_environment(7)
    assert {environment[name] for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")} == {"7"}
    probe = "import pruneaug, os; print(os.environ['OMP_NUM_THREADS'])"
    answer = subprocess.run([sys.executable, "-c", probe], env=environment, cwd="/", capture_output=True, check=True)
    assert answer.stdout == b"7\n"


NOISY = """
import os
from pruneaug.testing.platform import AnalyticMeasurer
print("printed on import")
class Noisy(AnalyticMeasurer):
    def measure(self, op, cells):
        print("printed while measuring")
        os.write(1, b"written to the descriptor")
        yield from super().measure(op, cells)
        yield from super().measure(op, cells)
"""


def test_what_a_measurer_prints_or_repeats_does_not_reach_the_store(tmp_path, monkeypatch):
    (tmp_path / "noisy_measurer.py").write_text(NOISY)
    monkeypatch.chdir(tmp_path)
    assert profile(tmp_path / "db", measurer="noisy_measurer:Noisy").measured == 12
    assert stored(tmp_path / "db") == Counter(CELLS)


def test_the_fake_takes_its_options_from_the_environment_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEAUG_ANALYTIC", json.dumps({"faults": {"dense@0": "error"}}))
    result = profile(tmp_path, ops=OPS[:1])
    assert set(errors(result).values()) == {"told to fail"}
    assert result.measured == 4
