"""Executors with workers of their own: the same results as in one process, and none lost however a worker ends."""

import contextlib
import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from faulty import DyingTask, Faulty, Placed, Unloadable, run
from test_search_resume import timeless
from toy_search import make_job, make_parts, search

from pruneaug.errors import PluginError, SpecError
from pruneaug.finetune.train import Train
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.searcher.candidate import PruneAndFineTune
from pruneaug.searcher.executors.local import Local
from pruneaug.searcher.executors.protocol import Setup
from pruneaug.searcher.study import run_search
from pruneaug.searcher.trial import read_records
from pruneaug.searcher.work import Failed, TrialWork
from pruneaug.sparsity.patterns import Block, LayerChoice

THREADS = {"threads": torch.get_num_threads()}


def states(result):
    return [trial.state for trial in result.trials]


def begun(tmp_path):
    return (tmp_path / "log").read_text().splitlines()


def test_one_worker_process_gives_what_the_driver_itself_gives(tmp_path):
    alone, _ = search(tmp_path / "alone", make_job(trials=8))
    result = run(tmp_path / "run", Faulty(tmp_path / "log"), trials=8)
    assert timeless(result.trials) == timeless(alone.trials)
    assert result.best_accuracy == alone.best_accuracy
    best = [(folder / "best" / "model.safetensors").read_bytes() for folder in (tmp_path / "alone", tmp_path / "run")]
    assert best[0] == best[1]


def test_real_training_gives_the_same_bits_in_a_worker_process(tmp_path):
    task, network, table = make_parts("cnn")
    results = []
    for name, options in {"local": {}, "processes": THREADS}.items():
        job = make_job(trials=3, max_accuracy_loss=0.5, executor={"name": name, "options": options})
        results.append(run_search(job, task, network, table, 5.0, tmp_path / name))
    assert timeless(results[0].trials) == timeless(results[1].trials)
    assert results[0].best is not None
    paths = [tmp_path / name / "best" / "model.safetensors" for name in ("local", "processes")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_several_workers_train_at_a_time_and_every_number_once(tmp_path):
    result = run(
        tmp_path / "run",
        Faulty(tmp_path / "log", delay_s=0.2),
        trials=8,
        strategy="random",
        executor={"name": "processes", "workers": 3},
    )
    assert [trial.number for trial in result.trials] == list(range(8))
    assert len(begun(tmp_path)) == len(set(begun(tmp_path))) == states(result).count("complete")
    alone, _ = search(tmp_path / "alone", make_job(trials=8, strategy="random"))
    # The same proposals and trainings; only which of them were not worth it depends on who was first.
    assert [trial.params for trial in result.trials] == [trial.params for trial in alone.trials]
    accuracies = {trial.number: trial.accuracy_validation for trial in alone.trials if trial.state == "complete"}
    assert all(
        trial.accuracy_validation == accuracies[trial.number]
        for trial in result.trials
        if trial.state == "complete" and trial.number in accuracies
    )


def test_a_trial_whose_worker_was_killed_is_given_to_another(tmp_path):
    alone, _ = search(tmp_path / "alone")
    result = run(tmp_path / "run", Faulty(tmp_path / "log", {1: "killed", 3: "killed"}))
    attempts = [trial.attempts for trial in result.trials if trial.state == "complete"]
    assert attempts[:2] == [2, 2]
    assert [(t.params, t.accuracy_validation) for t in result.trials] == [
        (t.params, t.accuracy_validation) for t in alone.trials
    ]


def test_a_trial_that_kills_every_worker_has_failed_and_the_search_goes_on(tmp_path):
    result = run(tmp_path / "run", Faulty(tmp_path / "log", {1: "killed", 2: "killed"}), retries=1)
    (failed,) = (trial for trial in result.trials if trial.state == "failed")
    assert failed.attempts == 2
    assert "its worker died 2 times: was killed (SIGKILL" in failed.error
    assert "memory" in failed.error
    assert result.best is not None


@pytest.mark.parametrize("fault", ["hang", "hang for good"])
def test_a_trial_that_hangs_has_failed_and_the_search_goes_on(tmp_path, fault, monkeypatch):
    monkeypatch.setattr("pruneaug.searcher.executors.processes._GRACE_S", 0.5)
    result = run(tmp_path / "run", Faulty(tmp_path / "log", {2: fault}), trial_timeout_s=3.0)
    (failed,) = (trial for trial in result.trials if trial.state == "failed")
    assert "search.trial_timeout_s, 3 s" in failed.error
    assert result.best is not None


def test_a_trial_that_hangs_in_the_drivers_own_process_has_failed(tmp_path):
    result = run(
        tmp_path / "run", Faulty(tmp_path / "log", {2: "hang"}), trial_timeout_s=3.0, executor={"name": "local"}
    )
    assert states(result).count("failed") == 1


@pytest.mark.parametrize("fault", [MemoryError(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_trial_that_raises_in_a_worker_is_recorded_and_the_search_goes_on(tmp_path, fault):
    result = run(tmp_path / "run", Faulty(tmp_path / "log", {2: fault}))
    (failed,) = (trial for trial in result.trials if trial.state == "failed")
    assert failed.error.startswith(type(fault).__name__)
    assert result.best is not None


def test_a_trial_whose_worker_was_killed_goes_on_from_its_last_rung(tmp_path):
    _, network, table = make_parts("cnn")
    job = make_job(trials=2, max_accuracy_loss=0.5, rungs=[0.5], executor={"name": "processes", "options": THREADS})
    results = []
    for name, die_at in {"whole": 0, "killed": 3}.items():  # after the dense network's and the first rung's
        task = DyingTask(tmp_path / f"{name}.log", die_at)
        results.append(run_search(job, task, network, table, 5.0, tmp_path / name))
    whole, killed = ([(t.params, t.accuracy_validation, t.rungs, t.state) for t in result.trials] for result in results)
    assert whole == killed
    assert max(trial.attempts for trial in results[1].trials) == 2
    steps = [(tmp_path / f"{name}.log").read_text().count("step") for name in ("whole", "killed")]
    lost = steps[1] - steps[0]
    a_trial = -(-task.size("train") // job.finetune.trial.batch_size)
    assert 0 < lost <= a_trial // 2  # only what came after the rung was trained twice


def test_workers_end_with_the_search(tmp_path):
    run(tmp_path / "run", Faulty(tmp_path / "log"), executor={"name": "processes", "workers": 2})
    assert not workers_of(os.getpid())


def test_a_task_that_cannot_be_sent_is_named(tmp_path):
    evaluator = Faulty(tmp_path / "log")
    evaluator.lock = threading.Lock()
    with pytest.raises(PluginError, match="cannot be pickled"):
        run(tmp_path / "run", evaluator)


def test_a_task_that_no_worker_can_load_ends_the_search_and_wears_out_no_trial(tmp_path):
    with pytest.raises(
        PluginError, match=r"must be able to load the task, but it cannot \(ModuleNotFoundError: .*of_the_user"
    ):
        run(tmp_path / "run", Unloadable())
    assert {record.state for record in read_records(tmp_path / "run" / "trials").values()} <= {"skipped"}


@pytest.mark.parametrize("gpus", [[0, 0], [0, 1], [3]], ids=str)
def test_workers_see_the_gpu_that_they_were_given_and_no_other(tmp_path, gpus):
    """Nothing of this test computes on a GPU."""
    executor = {"name": "processes", "workers": 2, "options": {"threads": 1, "gpus": gpus}}
    run(tmp_path / "run", Placed(tmp_path / "log", together=2), strategy="random", executor=executor)
    seen = {line.split()[1]: line.split()[0] for line in begun(tmp_path)}  # process -> its GPUs
    assert sorted(seen.values()) == sorted(str(gpus[worker % len(gpus)]) for worker in range(2))


def test_what_trains_in_the_drivers_process_is_told_the_device(tmp_path):
    task, network, _ = make_parts()
    evaluator = PruneAndFineTune(task, network, task.build_model(), Magnitude(), Train(), make_job().finetune)
    executor = Local(device="meta")  # where nothing has values, so that no accuracy comes of it
    executor.open(Setup(evaluator, tmp_path))
    choice = LayerChoice(Block(1, 1), 0.5)
    executor.submit(TrialWork("0", 0, {network.layers[0].name: choice}, seed=1, folder=tmp_path / "0"))
    (event,) = executor.wait(lambda work, rungs: True)
    assert isinstance(event, Failed)
    assert "meta" in event.error


def test_local_has_one_worker(tmp_path):
    with pytest.raises(SpecError, match=r"workers must be 1 for the executor 'local', but got 2"):
        search(tmp_path, make_job(executor={"workers": 2}))


def workers_of(pid):
    """The worker processes of a driver."""
    found = []
    for entry in (path for path in Path("/proc").iterdir() if path.name.isdecimal()):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z" and "executors.worker" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found
