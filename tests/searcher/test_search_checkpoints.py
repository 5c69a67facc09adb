"""Trainings of a search that is killed on their way: each goes on where it was, also those beside the trials."""

import signal

import optuna
import pytest
from test_search_resume import FORKS, study_of, timeless
from toy_search import make_job, make_parts, search, search_until_killed

from pruneaug.searcher.rundir import read_json
from pruneaug.searcher.study import run_search
from pruneaug.spec.load import parse_job
from pruneaug.testing.evaluator import AnalyticEvaluator
from pruneaug.testing.task import ToyTask

SHORT = {"epochs": 1, "batch_size": 32, "learning_rate": 0.02}
JOB = {
    "task": {"name": "pruneaug.testing.task:ToyTask", "train": {**SHORT, "epochs": 2}},
    "space": {"patterns": ["block:1x1", "block:8x1"], "sparsities": [0.5, 0.9]},
    "search": {"strategy": "random", "trials": 3, "objective": "front", "max_accuracy_loss": 1.0, "rungs": [0.3, 0.6]},
    "finetune": {"trial": SHORT, "final": {**SHORT, "epochs": 2}, "finalists": 2, "repeats": 2},
}


class Killed(BaseException):
    pass


class Mortal(ToyTask):
    """Counts the training steps of all its searches; one of them, by its number from 1, ends the search."""

    def __init__(self, die_at=0):
        super().__init__("cnn")
        object.__setattr__(self, "die_at", die_at)
        object.__setattr__(self, "steps", [])

    def loss(self, *args, **options):
        self.steps.append(len(self.steps))
        if len(self.steps) == self.die_at:
            raise Killed
        return super().loss(*args, **options)


def searched(folder, task, **changes):
    _, network, table = make_parts("cnn")
    job = parse_job({**JOB, "search": {**JOB["search"], **changes}})
    return run_search(job, task, network, table, 5.0, folder)


def outcome(result, folder):
    """What a search gives, its weights and what its study was told included."""
    trials = study_of(folder).get_trials(states=(optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED))
    return (
        timeless(result.trials),
        result.best_accuracy,
        result.repeats,
        read_json(folder / "best" / "record.json"),
        (folder / "best" / "model.safetensors").read_bytes(),
        [(trial.user_attrs["recorded"], trial.values, trial.intermediate_values) for trial in trials],
    )


# Eight steps an epoch: two epochs of the dense network, one of each of two trials, two of the finalist, one of each of
# two repeats, and two of each one's final fine-tuning.
@pytest.mark.parametrize(("rungs", "steps"), [([], [20, 40, 91]), ([0.3, 0.6], [31])], ids=["plain", "rungs"])
def test_killed_at_any_step_of_any_training_a_search_goes_on_with_that_step(
    tmp_path, stored_at_each_step, rungs, steps
):
    whole = Mortal()
    expected = outcome(searched(tmp_path / "whole", whole, rungs=rungs), tmp_path / "whole")
    assert len(whole.steps) == 8 * 12
    assert [len(trial.rungs) for trial in expected[0] if trial.state == "complete"] == [len(rungs)] * 2
    for step in steps:
        folder = tmp_path / str(step)
        task = Mortal(die_at=step)
        with pytest.raises(Killed):
            searched(folder, task, rungs=rungs)
        assert outcome(searched(folder, task, rungs=rungs), folder) == expected
        # The step in which it was killed is trained again; of repeats, which are recorded together, each one's last.
        assert 1 <= len(task.steps) - 96 <= (1 if step <= 48 else 4)
        assert not list((folder / "checkpoints").iterdir())


def test_a_final_fine_tuning_that_always_kills_the_search_has_failed_and_its_trial_wins_as_it_was(tmp_path):
    for _ in range(2):
        process = FORKS.Process(
            target=search_until_killed, args=(tmp_path, tmp_path / "log", "pruneaug.searcher.work:load_tensors", 1)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    result, evaluator = search(tmp_path, make_job(retries=1))
    (finalist,) = read_json(tmp_path / "best" / "record.json")["finalists"]
    assert "died 2 times" in finalist["error"]
    assert evaluator.refined == 0
    assert result.best_accuracy == result.best.accuracy_validation
    assert not list((tmp_path / "checkpoints").iterdir())


class Interrupted(AnalyticEvaluator):
    """Its long fine-tuning is interrupted so often."""

    def __init__(self, times):
        task, network, _ = make_parts()
        super().__init__(task, network, lambda sparsity: 1.0 - 0.033 * sparsity**2)
        self.left = times

    def refine(self, *args, **options):
        if self.left > 0:
            self.left -= 1
            raise KeyboardInterrupt
        return super().refine(*args, **options)


def test_interrupts_of_a_final_fine_tuning_are_no_deaths(tmp_path):
    evaluator = Interrupted(times=3)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, make_job(retries=0), evaluator=evaluator)
    search(tmp_path, make_job(retries=0), evaluator=evaluator)
    assert evaluator.refined == 1


def test_a_final_fine_tuning_that_hangs_has_failed_and_its_trial_wins_as_it_was(tmp_path):
    class Hanging(Interrupted):
        def refine(self, *args, **options):
            signal.pause()

    result, _ = search(tmp_path, make_job(final_timeout_s=0.5, trial_timeout_s=100.0), evaluator=Hanging(0))
    (finalist,) = read_json(tmp_path / "best" / "record.json")["finalists"]
    assert finalist["error"].startswith("TrialTimeout: the final fine-tuning took longer than search.final_timeout_s")
    assert result.best_accuracy == result.best.accuracy_validation
