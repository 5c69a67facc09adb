"""The Ray executor, on clusters that run on this machine."""

import contextlib
import threading
import time
from pathlib import Path

import pytest
from faulty import Faulty, Placed, Unloadable, run
from test_search_resume import timeless
from toy_search import search

from pruneaug.errors import PluginError, SpecError
from pruneaug.searcher.history import trial_seed
from pruneaug.searcher.trial import read_records

pytest.importorskip("ray")
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
@pytest.mark.parametrize(("options", "asked"), [({"cpus": 1000}, "1000 CPU"), ({"gpus": 1.5}, "1 CPU, 1.5 GPU")])
def test_more_than_any_node_has_is_refused(tmp_path, options, asked):
    with pytest.raises(SpecError, match=f"each trial takes {asked}, but no node"):
        run(tmp_path / "run", Faulty(tmp_path / "log"), executor=executor(**options))


@pytest.mark.usefixtures("running_ray")
def test_trials_that_take_half_a_gpu_share_one(tmp_path):
    """Ray is told of a GPU; nothing of this test computes on it."""
    result = run(
        tmp_path / "run", Placed(tmp_path / "log", together=2), strategy="random", executor=executor(2, gpus=0.5)
    )
    assert {trial.state for trial in result.trials} <= {"complete", "skipped"}
    assert {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()} == {"0"}


@pytest.mark.usefixtures("running_ray")
def test_a_task_that_no_worker_can_load_ends_the_search_and_wears_out_no_trial(tmp_path):
    with pytest.raises(
        PluginError, match=r"must be able to load the task, but it cannot \(ModuleNotFoundError: .*of_the_user"
    ):
        run(tmp_path / "run", Unloadable(), executor=executor())
    assert {record.state for record in read_records(tmp_path / "run" / "trials").values()} <= {"skipped"}


def test_the_trials_of_a_lost_node_are_trained_on_another(tmp_path, two_nodes):
    cluster, node = two_nodes
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
    assert [trial.number for trial in result.trials] == list(range(8))
    assert {trial.state for trial in result.trials} <= {"complete", "skipped"}
    assert any(trial.attempts > 1 for trial in result.trials)
    seeds = (tmp_path / "log.done").read_text().splitlines()
    # What was finished was trained once; a training may end just when its node does, and then counts as lost.
    lost = {str(trial_seed(0, trial.number, 1)) for trial in result.trials if trial.attempts > 1}
    assert {seed for seed in seeds if seeds.count(seed) > 1} <= lost
