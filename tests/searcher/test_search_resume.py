import multiprocessing
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from toy_search import LoggingEvaluator, make_job, make_parts, search, search_until_killed

from pruneaug.errors import RunError, StorageError
from pruneaug.searcher import history
from pruneaug.searcher.rundir import RunDir, read_json, write_json
from pruneaug.testing.platform import analytic_table

PROGRAM = Path(__file__).with_name("toy_search.py")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pruneaug.searcher.study", "pruneaug.testing.evaluator"]
)  # imported once, not per process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(trials, evaluations) of the search when nobody kills it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result, _ = search(folder / "run", evaluator=LoggingEvaluator(folder / "log"))
    return timeless(result.trials), lines(folder / "log")


def timeless(trials):
    return [replace(trial, seconds=0.0, own_seconds=0.0) for trial in trials]


def lines(path):
    return path.read_text().splitlines()


def study_of(folder):
    return optuna.load_study(study_name=read_json(folder / "run.json")["study"], storage=f"sqlite:///{folder}/study.db")


def ask_and_die(study, number):
    """What a driver leaves behind that is killed in a trial."""
    trial = history.ask(study, optuna.samplers.RandomSampler(0), number)
    trial.suggest_float("sparsity", 0.5, 0.9)


def test_a_driver_killed_in_a_trial_goes_on_by_the_same_command(tmp_path, undisturbed):
    command = [sys.executable, str(PROGRAM), str(tmp_path / "run"), str(tmp_path / "log")]
    driver = subprocess.Popen([*command, "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline() == "blocked\n"
    with pytest.raises(RunError, match=f"in use by process {driver.pid}"):
        search(tmp_path / "run")
    driver.kill()
    driver.communicate()
    done = lines(tmp_path / "log")

    again = subprocess.run([*command, "-1"], stdin=subprocess.DEVNULL, capture_output=True, text=True)

    assert again.stdout == "finished\n", again.stderr
    trials, evaluations = undisturbed
    assert lines(tmp_path / "log") == [*evaluations[:3], *evaluations[2:]]
    assert done == evaluations[:3]
    result, evaluator = search(tmp_path / "run")
    assert timeless(result.trials) == trials
    assert evaluator.pruned == []


@pytest.mark.parametrize(
    ("function", "call", "repeated"),
    [
        ("pruneaug.searcher.dense:write_json", 1, 0),
        ("pruneaug.searcher.driver:keep_faster", 3, 0),
        ("pruneaug.searcher.work:save_tensors", 2, 1),
        ("pruneaug.searcher.driver:write_record", 2, 1),
        ("pruneaug.searcher.history:tell", 2, 0),
        ("pruneaug.searcher.history:_user_attrs", 2, 0),
        ("pruneaug.searcher.ending:write_json", 1, 1),
        ("pruneaug.searcher.ending:save_tensors", 2, 0),
        ("pruneaug.searcher.ending:write_json", 2, 0),
    ],
)
def test_killed_at_any_moment_no_trial_is_lost_and_no_finished_one_repeated(
    tmp_path, undisturbed, function, call, repeated
):
    process = FORKS.Process(target=search_until_killed, args=(tmp_path / "run", tmp_path / "log", function, call))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL

    result, _ = search(tmp_path / "run", evaluator=LoggingEvaluator(tmp_path / "log"))

    trials, evaluations = undisturbed
    assert timeless(result.trials) == trials
    assert len(lines(tmp_path / "log")) == len(evaluations) + repeated
    finished = [trial for trial in study_of(tmp_path / "run").trials if history.RECORDED in trial.user_attrs]
    assert sorted(trial.user_attrs[history.RECORDED] for trial in finished) == list(range(6))
    assert all(trial.state.is_finished() for trial in study_of(tmp_path / "run").trials)


def test_a_finished_dense_training_is_never_repeated(tmp_path, monkeypatch):
    search(tmp_path, make_job(trials=1))
    monkeypatch.setattr("pruneaug.finetune.train.Train.finetune", lambda *args, **kwargs: pytest.fail("trained again"))
    search(tmp_path, make_job(trials=2))


def test_stale_running_trials_are_failed_and_their_numbers_run_again(tmp_path, undisturbed):
    search(tmp_path, make_job(trials=3))
    study = study_of(tmp_path)
    ask_and_die(study, 3)
    ask_and_die(study, 3)

    result, _ = search(tmp_path)

    assert timeless(result.trials) == undisturbed[0]
    assert [trial.state for trial in study_of(tmp_path).trials[3:5]] == [TrialState.FAIL, TrialState.FAIL]


def test_a_trial_that_always_kills_its_driver_is_recorded_as_failed(tmp_path):
    search(tmp_path, make_job(trials=1))
    study = study_of(tmp_path)
    for _ in range(3):
        ask_and_die(study, 1)

    result, evaluator = search(tmp_path, make_job(trials=2))

    assert result.trials[1].state == "failed"
    assert "died 3 times" in result.trials[1].error
    assert evaluator.pruned == []


def test_a_lost_study_is_made_again_from_the_records(tmp_path, undisturbed):
    search(tmp_path, make_job(trials=4))
    before = study_of(tmp_path).trials
    (tmp_path / "study.db").unlink()

    result, evaluator = search(tmp_path)

    assert timeless(result.trials) == undisturbed[0]
    assert len(evaluator.pruned) == sum(trial.state == "complete" for trial in result.trials[4:])
    for old, new in zip(before, study_of(tmp_path).trials[:4], strict=True):
        assert (old.state, old.values, old.params, old.distributions) == (
            new.state,
            new.values,
            new.params,
            new.distributions,
        )
        facts = {key: value for key, value in old.user_attrs.items() if key != history.SUBMITTED}
        assert (old.constraints, facts, old.intermediate_values) == (
            new.constraints,
            new.user_attrs,
            new.intermediate_values,
        )


def test_a_broken_study_names_the_way_out(tmp_path):
    search(tmp_path, make_job(trials=1))
    (tmp_path / "study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(RunError, match="delete it"):
        search(tmp_path)


def test_more_trials_go_on_with_the_same_folder(tmp_path, undisturbed):
    search(tmp_path, make_job(trials=2))
    result, _ = search(tmp_path)
    assert timeless(result.trials) == undisturbed[0]


def test_another_job_is_refused_and_the_keys_that_differ_are_named(tmp_path):
    search(tmp_path, make_job(trials=1))
    with pytest.raises(RunError, match=r"search\.max_accuracy_loss \(0\.02, now 0\.5\)") as refused:
        search(tmp_path, make_job(trials=1, max_accuracy_loss=0.5))
    assert "search.trials" not in str(refused.value)


def test_other_latencies_are_refused(tmp_path):
    search(tmp_path, make_job(trials=1))
    task, network, _ = make_parts()
    other = analytic_table([layer.op for layer in network.layers], ["block:1x1"], [0.5, 0.9])
    with pytest.raises(RunError, match="latencies must stay"):
        search(tmp_path, make_job(trials=1), parts=(task, network, other))


def test_one_process_cannot_drive_a_folder_twice(tmp_path):
    with RunDir(tmp_path).lock(), pytest.raises(RunError, match="one driver at a time"):
        search(tmp_path)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    (tmp_path / "lock").write_text("process 999999 on elsewhere\n")
    result, _ = search(tmp_path, make_job(trials=1))
    assert len(result.trials) == 1


def test_a_broken_record_is_named(tmp_path):
    search(tmp_path, make_job(trials=1))
    (tmp_path / "trials" / "0.json").write_text('{"version": 1, "numb')
    with pytest.raises(RunError, match=r"0\.json must be a trial record"):
        search(tmp_path)


def test_lost_weights_of_the_best_trial_are_made_again(tmp_path, undisturbed):
    result, _ = search(tmp_path)
    weights = tmp_path / "weights" / str(result.best.number)
    before = (weights / "model.safetensors").read_bytes()
    shutil.rmtree(weights)

    again, evaluator = search(tmp_path)

    assert timeless(again.trials) == undisturbed[0]
    assert evaluator.pruned == [result.best.assignment]
    assert (weights / "model.safetensors").read_bytes() == before


def test_a_deleted_record_is_run_again_and_the_next_best_gets_its_weights_back(tmp_path, undisturbed):
    result, _ = search(tmp_path)
    (tmp_path / "trials" / f"{result.best.number}.json").unlink()
    assert timeless(search(tmp_path)[0].trials) == undisturbed[0]


def test_a_study_that_cannot_be_written_stops_the_search_and_its_trial_is_not_repeated(
    tmp_path, monkeypatch, undisturbed
):
    def full(*args, **kwargs):
        raise optuna.exceptions.StorageInternalError("database or disk is full")

    log = LoggingEvaluator(tmp_path / "log")
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "set_constraint", full)
        with pytest.raises(StorageError, match="finished trials are kept"):
            search(tmp_path / "run", evaluator=log)

    result, _ = search(tmp_path / "run", evaluator=log)

    assert timeless(result.trials) == undisturbed[0]
    assert lines(tmp_path / "log") == undisturbed[1]


def test_a_folder_of_another_version_is_refused(tmp_path):
    search(tmp_path, make_job(trials=1))
    write_json(tmp_path / "run.json", {**read_json(tmp_path / "run.json"), "version": 2})
    with pytest.raises(RunError, match="must be of version 1"):
        search(tmp_path)
