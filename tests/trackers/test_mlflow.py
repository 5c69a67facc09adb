"""The runs are read back with MLflow's own client, from the database file that is the default."""

import pytest

pytest.importorskip("mlflow")

from pruneaug.testing.trackers import TrackerContract, finished_trial
from pruneaug.trackers.mlflow import MLflow
from pruneaug.trackers.protocol import Tracked


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client_of(folder):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def runs_of(folder, experiment="a run"):
    client = client_of(folder)
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


@pytest.mark.slow
class TestMLflow(TrackerContract):
    def make(self, run):
        return MLflow(run)

    def recorded(self, run):
        return [int(found.data.tags["pruneaug.trial"]) for found in runs_of(run.folder)]


@pytest.mark.slow
def test_a_trial_has_its_parameters_each_layer_figures_rungs_and_state(tmp_path):
    tracker = MLflow(Tracked(tmp_path, "a run", {}), experiment="all runs")
    layers = {f"layer[{index}]": {"pattern": "block:4x1", "sparsity": 0.5} for index in range(230)}
    tracker.trial_finished(finished_trial(0, assignment=layers))
    tracker.trial_finished(finished_trial(1, "failed", error="no room" * 1000))
    failed, trial = sorted(runs_of(tmp_path, "all runs"), key=lambda run: -int(run.data.tags["pruneaug.trial"]))
    assert trial.data.params["pattern 0"] == "block:8x1"
    assert trial.data.params["layer.layer_229_"] == "block:4x1@0.5"
    assert len(trial.data.params) == 232
    assert trial.data.metrics["latency_ms"] == 1.5
    assert trial.data.metrics["accuracy_loss"] == 0.01
    rungs = client_of(tmp_path).get_metric_history(trial.info.run_id, "rung_accuracy")
    assert sorted((metric.step, metric.value) for metric in rungs) == [(250, 0.7), (500, 0.8)]
    assert (trial.info.status, failed.info.status) == ("FINISHED", "FAILED")
    assert failed.data.tags["error"].startswith("no roomno room")


@pytest.mark.slow
def test_a_trial_that_a_killed_driver_began_is_replaced_and_runs_of_others_are_left(tmp_path):
    run = Tracked(tmp_path, "a run", {})
    MLflow(run).trial_finished(finished_trial(0))
    client = client_of(tmp_path)
    experiment = client.get_experiment_by_name("a run").experiment_id
    client.create_run(experiment, tags={"pruneaug.run": str(tmp_path), "pruneaug.trial": "1"})
    client.create_run(experiment, tags={"pruneaug.run": "/other", "pruneaug.trial": "2"})
    tracker = MLflow(run)
    for number in range(3):
        tracker.trial_finished(finished_trial(number))
    found = [(run.data.tags["pruneaug.trial"], run.info.status) for run in runs_of(tmp_path)]
    assert sorted(found) == [("0", "FINISHED"), ("1", "FINISHED"), ("2", "FINISHED"), ("2", "RUNNING")]
