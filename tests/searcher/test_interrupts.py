"""Ctrl-C while workers train: all of them end, and the search goes on by the same command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty import Faulty, run
from test_kills import is_zombie

MARK = "PRUNEAUG_TEST_INTERRUPTS"
SEARCH = {"strategy": "random", "objective": "front", "max_accuracy_loss": 1.0}
OPTIONS = {"processes": {"threads": 1}, "ray": {"cpus": 1}}


def marked(value):
    """The processes that were started with this mark, by whatever process between."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"{MARK}={value}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if not is_zombie(pid)]


def wait_for(condition, driver=None):
    until = time.monotonic() + 120
    while not condition():
        assert driver is None or driver.poll() is None, "the search ended by itself"
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_ctrl_c_ends_every_worker_and_the_search_goes_on(tmp_path, name):
    if name == "ray":
        pytest.importorskip("ray")
    run_folder, log = tmp_path / "run", tmp_path / "log"
    driver = subprocess.Popen(
        [sys.executable, __file__, str(run_folder), str(log), name],
        env={**os.environ, MARK: str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) == 2, driver)
        assert len(marked(tmp_path)) >= 3
        os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
        _, said = driver.communicate(timeout=60)
        assert driver.returncode != 0
        assert "KeyboardInterrupt" in said
        wait_for(lambda: not marked(tmp_path))
    finally:
        for pid in marked(tmp_path):
            os.kill(pid, signal.SIGKILL)
        driver.wait()
    result = run(run_folder, Faulty(log), executor={"name": "local"}, **SEARCH)
    assert [trial.number for trial in result.trials] == list(range(6))
    assert {trial.state for trial in result.trials} <= {"complete", "skipped"}


if __name__ == "__main__":
    folder, log, name = sys.argv[1:]
    executor = {"name": name, "workers": 2, "options": OPTIONS[name]}
    run(Path(folder), Faulty(log, delay_s=3600.0), executor=executor, **SEARCH)
