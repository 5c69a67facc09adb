"""Twenty kills at random moments, of drivers and of workers: no finished trial is lost or repeated."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty import Faulty, run
from test_executors import workers_of

from pruneaug.searcher.trial import read_records

KILLS, TRIALS, MORE = 20, 40, 10  # a search that ends before the last kill goes on with more trials
SEARCH = {
    "strategy": "random",
    "max_accuracy_loss": 1.0,
    "objective": "front",
    "retries": 100,
    "executor": {"name": "processes", "workers": 2, "options": {"threads": 1}},
}


def finished(folder):
    """Number -> the bytes of the record."""
    return {path.name: path.read_bytes() for path in sorted((folder / "trials").glob("*.json"))}


@pytest.mark.slow
def test_twenty_kills_lose_and_repeat_no_finished_trial(tmp_path):
    generator, folder = random.Random(0), tmp_path / "run"
    kills, known, trials = 0, {}, TRIALS

    def start():
        return subprocess.Popen([sys.executable, __file__, str(folder), str(tmp_path / "log"), str(trials)])

    driver = start()
    while kills < KILLS:
        time.sleep(generator.uniform(0.3, 3.0))
        if driver.poll() is not None:
            assert driver.returncode == 0
            trials += MORE
            driver = start()
        workers = workers_of(driver.pid)
        victim = driver.pid if kills % 3 == 0 or not workers else generator.choice(workers)
        if victim == driver.pid and len(finished(folder)) == len(known) and kills > 3:
            continue  # or a slow machine would never get beyond its start
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        kills += 1
        if victim == driver.pid:
            driver.wait()
            deadline = time.monotonic() + 30
            while any(Path(f"/proc/{worker}").exists() and not is_zombie(worker) for worker in workers):
                assert time.monotonic() < deadline, "a worker outlived its driver"
                time.sleep(0.02)
            now = finished(folder)
            assert known.items() <= now.items()  # nothing that was finished is lost or written again
            known = now
            driver = start()
    assert driver.wait() == 0
    assert known.items() <= finished(folder).items()
    records = read_records(folder / "trials")
    assert list(records) == list(range(trials))
    assert not any(record.state == "failed" for record in records.values())
    trained = [record for record in records.values() if record.state == "complete"]
    done = (tmp_path / "log.done").read_text().splitlines()
    # A training may have ended just when its record was not written yet: at most one per worker and kill.
    assert len(set(done)) >= len(trained)
    assert len(done) <= len(trained) + 2 * KILLS
    params = {number: dict(record.params) for number, record in records.items()}
    assert params == undisturbed(tmp_path, trials)


def undisturbed(tmp_path, trials):
    search = {**SEARCH, "trials": trials, "executor": {"name": "local"}}
    result = run(tmp_path / "quiet", Faulty(tmp_path / "quiet-log"), **search)
    return {trial.number: dict(trial.params) for trial in result.trials}


def is_zombie(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Faulty(sys.argv[2], delay_s=0.3), trials=int(sys.argv[3]), **SEARCH)
