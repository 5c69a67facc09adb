"""One search on a Ray cluster in which a worker, a node and the driver are killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty import Faulty, run
from test_kills import finished

from pruneaug.searcher.trial import read_records

TRIALS = 12
SEARCH = {"strategy": "random", "max_accuracy_loss": 1.0, "objective": "front", "retries": 100, "trials": TRIALS}


def wait_for(condition, driver):
    until = time.monotonic() + 120
    while not condition():
        assert driver.poll() is None, "the search ended too early"
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_worker_node_and_driver_lose_and_repeat_no_finished_trial(tmp_path, two_nodes):
    cluster, node = two_nodes
    folder, log = tmp_path / "run", tmp_path / "log"

    def start():
        return subprocess.Popen([sys.executable, __file__, str(folder), str(log), cluster.address])

    driver = start()
    try:
        wait_for(lambda: len(finished(folder)) >= 4, driver)
        cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: len(finished(folder)) >= 7, driver)
        driver.kill()
        driver.wait()
        known = finished(folder)
        driver = start()
        assert driver.wait(timeout=180) == 0
    finally:
        driver.kill()
        driver.wait()
    assert known.items() <= finished(folder).items()
    records = read_records(folder / "trials")
    assert list(records) == list(range(TRIALS))
    assert {record.state for record in records.values()} <= {"complete", "skipped"}
    assert any(record.attempts > 1 for record in records.values())
    quiet = run(tmp_path / "quiet", Faulty(tmp_path / "quiet-log"), **{**SEARCH, "executor": {"name": "local"}})
    assert [dict(trial.params) for trial in quiet.trials] == [dict(record.params) for record in records.values()]


if __name__ == "__main__":
    options = {"cpus": 1, "address": sys.argv[3]}
    executor = {"name": "ray", "workers": 2, "options": options}
    # The second training, of all there are, kills its worker.
    run(Path(sys.argv[1]), Faulty(sys.argv[2], {2: "killed"}, delay_s=0.5), executor=executor, **SEARCH)
