import optuna
import pytest
from toy_search import make_job, make_parts

from pruneaug.errors import SpecError
from pruneaug.searcher.candidate import Candidate
from pruneaug.searcher.stoppers import AtRung, Recovery, make_stopper
from pruneaug.searcher.study import run_search
from pruneaug.searcher.trial import TrialRecord, read_records
from pruneaug.testing.evaluator import AnalyticEvaluator


def finished(number, accuracy, rung):
    return TrialRecord(number, "complete", {}, {}, 0.5, 1.0, accuracy, 1 - accuracy, 0.0, rungs=((1.0, rung),))


def at(loss, records, to_beat=0.02):
    return AtRung(((1.0, 1 - loss),), loss, to_beat, records, None, None)


def test_recovery_stops_what_no_recovery_seen_so_far_could_save():
    records = [finished(0, 0.99, 0.95), finished(1, 0.98, 0.96), finished(2, 0.97, 0.94)]
    stopper = Recovery(margin=0.01)
    # The largest recovery is 0.04 points: with the margin, a loss of up to 0.07 may still come down to 0.02.
    assert not stopper.stops(at(0.0699, records))
    assert stopper.stops(at(0.0701, records))
    assert not stopper.stops(at(0.5, records[:2]))
    assert not stopper.stops(at(0.5, [*records[:2], finished(2, 0.97, 0.94)][:2]))


def test_recovery_compares_only_the_same_rung():
    other = [TrialRecord(i, "complete", {}, {}, 0.5, 1.0, 0.9, 0.1, 0.0, rungs=((2.0, 0.9),)) for i in range(5)]
    assert not Recovery().stops(at(0.9, other))


@pytest.mark.parametrize("name", ["median", "asha"])
def test_optunas_kind_of_stopper_ends_the_worse_ones(name):
    """Against a plain reference: the median, or the better half, of what came to the rung before."""
    study = optuna.create_study()
    stopper = make_stopper(name, {"startup_trials": 1} if name == "median" else {})
    seen, ended = [], []
    for value in (0.5, 0.1, 0.4, 0.05, 0.3, 0.02):
        trial = study.ask()
        trial.report(value, step=1)
        stops = stopper.stops(AtRung(((1.0, 1 - value),), value, 0.0, [], study, trial))
        if name == "median":
            finished_before = sorted(v for v, gone in zip(seen, ended, strict=True) if not gone)
            middle = len(finished_before) // 2
            median = (
                None
                if not finished_before
                else finished_before[middle]
                if len(finished_before) % 2
                else (finished_before[middle - 1] + finished_before[middle]) / 2
            )
            assert stops == (median is not None and value > median)
        else:
            better = sorted([*seen, value])[: max(1, (len(seen) + 1) // 2)]
            assert stops == (value not in better)
        seen.append(value)
        ended.append(stops)
        study.tell(trial, None if stops else value, optuna.trial.TrialState.PRUNED if stops else None)
    assert any(ended)
    assert not all(ended)


@pytest.mark.parametrize("options", [{"margin": -1}, {"startup_trials": 0}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(SpecError, match="startup_trials"):
        make_stopper("recovery", options)


class Rising(AnalyticEvaluator):
    """Comes to its accuracy in four equal steps from 0.1 below it."""

    def __init__(self):
        task, network, _ = make_parts()
        super().__init__(task, network, lambda sparsity: 1.0 - 0.2 * sparsity**2)

    def prune(self, assignment, *, session, **options):
        candidate = super().prune(assignment, **options)
        for epochs in session.rungs:
            if not session.judge(epochs, candidate.accuracy - 0.1 * (1 - epochs)):
                return Candidate(candidate.weights, candidate.masks, 0.0, epochs, stopped=True)
        return candidate


def test_a_stopped_trial_is_recorded_with_its_rungs_and_told_as_pruned(tmp_path):
    task, network, table = make_parts()
    job = make_job(
        trials=16,
        strategy="random",
        max_accuracy_loss=0.06,
        rungs=[0.25, 0.5, 1],
        stopper={"name": "recovery", "options": {"margin": 0.0, "startup_trials": 1}},
    )
    result = run_search(job, task, network, table, 5.0, tmp_path, evaluator=Rising())
    stopped = [trial for trial in result.trials if trial.state == "stopped"]
    complete = [trial for trial in result.trials if trial.state == "complete"]
    assert stopped
    assert all(trial.rungs[0][0] == 0.25 and trial.epochs == trial.rungs[-1][0] for trial in stopped)
    assert all(trial.accuracy_loss is None and not trial.feasible for trial in stopped)
    assert all([epochs for epochs, _ in trial.rungs] == [0.25, 0.5] for trial in complete)
    # Recovery is the same for all here, so no trial was stopped that would have been feasible.
    assert all(1 - (trial.rungs[-1][1] + 0.1 * (1 - trial.epochs)) > 0.06 for trial in stopped)
    assert read_records(tmp_path / "trials") == {trial.number: trial for trial in result.trials}
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path}/study.db")
    trials = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{tmp_path}/study.db").trials
    told = {trial.user_attrs["number"]: trial for trial in trials}
    for trial in stopped:
        assert told[trial.number].state == optuna.trial.TrialState.PRUNED
        assert list(told[trial.number].intermediate_values) == list(range(1, len(trial.rungs) + 1))
        assert told[trial.number].constraints["accuracy_loss"] > 0
    (tmp_path / "study.db").unlink()
    run_search(job, task, network, table, 5.0, tmp_path, evaluator=Rising())
    again = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{tmp_path}/study.db").trials
    for trial in again:
        old = told[trial.user_attrs["number"]]
        assert (old.state, old.values, old.constraints) == (trial.state, trial.values, trial.constraints)
        assert old.intermediate_values == trial.intermediate_values


def test_real_training_is_stopped_at_its_rungs_and_unharmed_by_them(tmp_path):
    task, network, table = make_parts("cnn")
    options = {"trials": 3, "max_accuracy_loss": 0.5}
    plain = run_search(make_job(**options), task, network, table, 5.0, tmp_path / "plain")
    judged = run_search(make_job(**options, rungs=[0.5]), task, network, table, 5.0, tmp_path / "judged")
    assert [t.accuracy_validation for t in plain.trials] == [t.accuracy_validation for t in judged.trials]
    assert all(len(t.rungs) == 1 for t in judged.trials if t.state == "complete")
    assert not any((tmp_path / "judged" / "checkpoints").glob("*"))
