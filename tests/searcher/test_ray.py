"""The Ray executor, on clusters that run on this machine."""

import contextlib
import threading
import time
from pathlib import Path

import pytest
from faulty import Faulty, run
from test_search_resume import timeless
from toy_search import search

from pruneaug.errors import SpecError
from pruneaug.searcher.history import trial_seed

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def executor(workers=1, **options):
    return {"name": "ray", "workers": workers, "options": {"cpus": 1, **options}}


def test_one_worker_gives_what_the_driver_itself_gives(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    alone, _ = search(tmp_path / "alone")
    result = run(tmp_path / "run", Faulty(tmp_path / "log"), executor=executor())
    assert timeless(result.trials) == timeless(alone.trials)
    best = [(folder / "best" / "model.safetensors").read_bytes() for folder in (tmp_path / "alone", tmp_path / "run")]
    assert best[0] == best[1]


@pytest.mark.usefixtures("running_ray")
def test_faults_in_trials_are_recorded_and_killed_workers_replaced(tmp_path):
    faults = {1: "killed", 3: MemoryError(), 4: "hang"}
    result = run(tmp_path / "run", Faulty(tmp_path / "log", faults), executor=executor(), trials=8, trial_timeout_s=5.0)
    failed = {trial.error.partition(":")[0] for trial in result.trials if trial.state == "failed"}
    assert failed == {"MemoryError", "TrialTimeout"}
    assert max(trial.attempts for trial in result.trials) == 2
    assert result.best is not None


@pytest.mark.usefixtures("running_ray")
def test_more_than_any_node_has_is_refused(tmp_path):
    with pytest.raises(SpecError, match="each trial takes 1000 CPU, but no node"):
        run(tmp_path / "run", Faulty(tmp_path / "log"), executor=executor(cpus=1000))


def test_the_trials_of_a_lost_node_are_trained_on_another(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    ray.shutdown()  # whatever earlier tests left
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    log, over = tmp_path / "log", threading.Event()

    def lose_node():
        # Both workers are in their first trial then, for seconds, and the head has room for one of them.
        while not (log.exists() and len(log.read_text().splitlines()) >= 2):
            if over.wait(0.05):
                return
        time.sleep(0.3)
        with contextlib.suppress(Exception):
            cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=lose_node)
    killer.start()
    try:
        result = run(
            tmp_path / "run",
            Faulty(log, delay_s=2.0),
            trials=8,
            strategy="random",
            objective="front",
            max_accuracy_loss=1.0,
            executor=executor(2, address=cluster.address),
        )
    finally:
        over.set()
        killer.join()
        ray.shutdown()
        cluster.shutdown()
    assert [trial.number for trial in result.trials] == list(range(8))
    assert {trial.state for trial in result.trials} <= {"complete", "skipped"}
    assert any(trial.attempts > 1 for trial in result.trials)
    seeds = (tmp_path / "log.done").read_text().splitlines()
    # What was finished was trained once; a training may end just when its node does, and then counts as lost.
    lost = {str(trial_seed(0, trial.number, 1)) for trial in result.trials if trial.attempts > 1}
    assert {seed for seed in seeds if seeds.count(seed) > 1} <= lost
