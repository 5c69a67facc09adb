import errno
import json
from dataclasses import replace

import optuna
import pytest
import torch
from toy_search import gentle, make_job, make_parts, search

from pruneaug.errors import InputError, PluginError, SpecError, StorageError, TrainingError
from pruneaug.latency.network import predict
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.pruners.protocol import Pruned
from pruneaug.searcher import driver, work
from pruneaug.searcher.final import load_best
from pruneaug.searcher.rundir import RunDir, read_json
from pruneaug.searcher.study import run_search
from pruneaug.sparsity.masks import mask_sparsity
from pruneaug.sparsity.patterns import Block, LayerChoice
from pruneaug.testing.evaluator import AnalyticEvaluator
from pruneaug.testing.platform import analytic_table


class FailingEvaluator(AnalyticEvaluator):
    """Fails in one of its evaluations."""

    def __init__(self, fail_at, error):
        task, network, _ = make_parts()
        super().__init__(task, network, gentle)
        self.fail_at, self.error = fail_at, error

    def prune(self, assignment, **options):
        candidate = super().prune(assignment, **options)
        if len(self.pruned) == self.fail_at:
            raise self.error
        return candidate


def test_the_whole_flow_prunes_trains_and_judges_a_network(tmp_path):
    task, network, table = make_parts("cnn")
    job = make_job(trials=5, max_accuracy_loss=0.5)
    result = run_search(job, task, network, table, 5.0, tmp_path)

    best = result.best
    assert best is not None
    assert best.latency_us == predict(network, best.assignment, table, 5.0).total_us < result.dense_latency_us
    assert best.latency_us == min(trial.latency_us for trial in result.trials if trial.feasible)
    assert result.dense_accuracy > 0.9
    found = load_best(task, RunDir(tmp_path))
    assert task.evaluate(found.model, "validation") == result.best_accuracy >= best.accuracy_validation
    weights = dict(found.model.named_modules())
    for name, choice in best.assignment.items():
        assert int(weights[name].weight.detach()[~found.masks[name]].count_nonzero()) == 0
        assert mask_sparsity(found.masks[name]) == pytest.approx(choice.sparsity, abs=0.05)


def test_a_trial_that_cannot_beat_the_best_is_not_trained(tmp_path):
    result, evaluator = search(tmp_path, make_job(trials=12))
    best_us = result.dense_latency_us
    for trial in result.trials:
        assert (trial.state == "skipped") == (trial.latency_us >= best_us)
        if trial.feasible:
            best_us = min(best_us, trial.latency_us)
    judged = [trial.assignment for trial in result.trials if trial.state == "complete"]
    assert evaluator.pruned == judged
    assert 0 < len(judged) < 12


def test_a_skipped_trial_is_never_feasible_and_never_best(tmp_path):
    result, _ = search(tmp_path, make_job(trials=12))
    skipped = [trial for trial in result.trials if trial.state == "skipped"]
    assert skipped
    assert not any(trial.feasible or trial.accuracy_validation is not None for trial in skipped)
    name = read_json(tmp_path / "run.json")["study"]
    found = optuna.load_study(study_name=name, storage=f"sqlite:///{tmp_path}/study.db")
    assert found.best_trial.user_attrs["number"] == result.best.number
    assert found.best_value == result.best.latency_us


def test_only_the_best_trials_weights_are_kept(tmp_path):
    result, _ = search(tmp_path, make_job(trials=8))
    assert [folder.name for folder in (tmp_path / "weights").iterdir()] == [str(result.best.number)]


@pytest.mark.parametrize(
    "error",
    [
        TrainingError("not finite"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_trial_that_raises_is_recorded_and_the_search_goes_on(tmp_path, error):
    result, evaluator = search(tmp_path, evaluator=FailingEvaluator(2, error))
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert [type(error).__name__ in trial.error for trial in failed] == [True]
    assert len(result.trials) == 6
    assert len(evaluator.pruned) > 2
    assert result.best is not None


def test_a_metric_that_is_nan_fails_the_trial(tmp_path):
    result, _ = search(tmp_path, accuracy=lambda sparsity: float("nan"))
    assert {trial.state for trial in result.trials} == {"failed", "skipped"}
    assert all("nan" in trial.error for trial in result.trials if trial.state == "failed")
    assert result.best is None
    assert "no trial was judged" in result.how_close


def test_a_pruner_that_cuts_blocks_fails_its_trial(tmp_path, monkeypatch):
    def half_blocks(self, model, network, assignment, data):
        weights = {name: dict(model.named_modules())[name].weight for name in assignment}
        generator = torch.Generator().manual_seed(0)
        return Pruned({name: torch.rand(w.shape, generator=generator) < 0.3 for name, w in weights.items()})

    monkeypatch.setattr(Magnitude, "prune", half_blocks)
    job = make_job(trials=4, strategy="uniform")
    task, network, table = make_parts()
    result = run_search(job, task, network, table, 5.0, tmp_path)
    block = [t for t in result.trials if t.params["pattern"] == "block:8x1" and t.state != "skipped"]
    assert block
    assert all("whole blocks" in trial.error for trial in block)


def test_a_disk_too_full_for_the_weights_stops_the_search_and_no_trial_is_lost(tmp_path, monkeypatch):
    real, calls = work.save_tensors, []

    def full_once(path, tensors):
        calls.append(path)
        if len(calls) == 2:
            raise StorageError("the disk is full")
        real(path, tensors)

    monkeypatch.setattr(work, "save_tensors", full_once)
    with pytest.raises(StorageError):
        search(tmp_path)
    result, _ = search(tmp_path)
    assert [trial.number for trial in result.trials] == list(range(6))
    assert not any(trial.state == "failed" for trial in result.trials)
    assert result.best is not None


def test_a_disk_too_full_for_a_record_stops_the_search_and_the_trial_is_not_lost(tmp_path, monkeypatch):
    def full(folder, record):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(driver, "write_record", full)
        with pytest.raises(StorageError):
            search(tmp_path)
    result, _ = search(tmp_path)
    assert [trial.number for trial in result.trials] == list(range(6))


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, evaluator=FailingEvaluator(2, KeyboardInterrupt()))
    result, _ = search(tmp_path)
    assert [trial.number for trial in result.trials] == list(range(6))
    assert not any(trial.state == "failed" for trial in result.trials)


def test_when_nothing_is_feasible_the_result_says_how_close_it_came(tmp_path):
    result, evaluator = search(tmp_path, accuracy=lambda sparsity: 0.9 - 0.1 * sparsity)
    assert result.best is None
    assert result.best_accuracy is None
    assert evaluator.refined == 0
    losses = [trial.accuracy_loss for trial in result.trials if trial.accuracy_loss is not None]
    assert result.closest.accuracy_loss == min(losses)
    assert f"{min(losses):.4f}" in result.how_close
    assert not (tmp_path / "best").exists()


def test_a_winner_that_is_more_accurate_than_dense_gains(tmp_path):
    result, _ = search(tmp_path)
    gaining = replace(result, best=replace(result.best, accuracy_loss=-0.0084))
    assert f"trial {result.best.number} gains 0.0084 of validation accuracy, and a loss of" in gaining.how_close


def test_a_loss_of_exactly_the_allowed_one_is_feasible(tmp_path):
    result, _ = search(tmp_path, make_job(max_accuracy_loss=0.01), accuracy=lambda sparsity: 1.0 - 0.01)
    assert 1.0 - (1.0 - 0.01) > 0.01
    assert result.best is not None


def test_the_latency_is_that_of_the_masks_which_the_pruner_really_gave(tmp_path):
    class LessSparse(AnalyticEvaluator):
        def prune(self, assignment, **options):
            halved = {name: LayerChoice(choice.pattern, 0.5) for name, choice in assignment.items()}
            return super().prune(halved, **options)

    parts = make_parts()
    result, _ = search(tmp_path, evaluator=LessSparse(parts[0], parts[1], gentle))
    judged = [trial for trial in result.trials if trial.state == "complete"]
    assert judged
    for trial in judged:
        assert {choice.sparsity for choice in trial.assignment.values()} == {0.5}
        assert trial.latency_us == predict(parts[1], trial.assignment, parts[2], 5.0).total_us


def test_a_feasible_network_that_turns_out_slower_than_dense_is_not_the_best(tmp_path):
    class Slow(AnalyticEvaluator):
        def prune(self, assignment, **options):
            return super().prune({name: LayerChoice(Block(1, 1), 0.5) for name in assignment}, **options)

    parts = make_parts()
    job = make_job(strategy="uniform")
    table = analytic_table([layer.op for layer in parts[1].layers], ["block:1x1", "block:8x1"], [0.5, 0.9])
    result, _ = search(tmp_path, job, evaluator=Slow(parts[0], parts[1], gentle), parts=(*parts[:2], table))
    slow = [trial for trial in result.trials if trial.params["pattern"] == "block:1x1" and trial.feasible]
    assert slow
    assert all(trial.latency_us > result.dense_latency_us for trial in slow)
    assert result.best is None or result.best.latency_us < result.dense_latency_us


def test_no_trial_starts_after_the_time_limit(tmp_path):
    result, _ = search(tmp_path, make_job(trials=9, timeout_s=1e-6))
    spent = [trial for trial in result.trials if trial.seconds > 0]
    assert len(spent) == 1
    assert result.trials[-1] == spent[0]


def test_progress_counts_the_trials(tmp_path):
    told = []
    search(tmp_path, progress=lambda *event: told.append(event))
    assert [done for stage, done, _, _ in told if stage == "Search"] == list(range(7))
    steps = [(done, total) for stage, done, total, _ in told if stage == "Dense training"]
    assert steps[-1] == (32, 32)


def test_the_dense_network_and_the_job_are_stored_before_the_first_trial(tmp_path):
    class Looking(AnalyticEvaluator):
        def prune(self, assignment, **options):
            assert read_json(tmp_path / "dense" / "record.json")["accuracy_validation"] == 1.0
            assert (tmp_path / "dense" / "model.safetensors").exists()
            assert "max_accuracy_loss: 0.02" in (tmp_path / "resolved.yaml").read_text()
            return super().prune(assignment, **options)

    task, network, _ = make_parts()
    result, _ = search(tmp_path, evaluator=Looking(task, network, gentle))
    assert result.best is not None


def test_the_same_seed_gives_the_same_search_and_another_seed_another(tmp_path):
    runs = [search(tmp_path / str(index), make_job(seed=seed))[0] for index, seed in enumerate((1, 1, 2))]
    first, second, other = ([(t.params, t.assignment, t.latency_us) for t in run.trials] for run in runs)
    assert first == second
    assert first != other


def test_records_are_json_that_tells_everything(tmp_path):
    result, _ = search(tmp_path)
    for trial in result.trials:
        value = json.loads((tmp_path / "trials" / f"{trial.number}.json").read_text())
        assert value["latency_us"] == trial.latency_us
        assert value["assignment"] == {name: choice.to_json() for name, choice in trial.assignment.items()}


@pytest.mark.parametrize(
    ("search_spec", "error", "words"),
    [
        ({"strategy": "jiont"}, PluginError, "did you mean 'joint'"),
        ({"strategy": "random", "options": {"startup_trials": 3}}, PluginError, "no option 'startup_trials'"),
        ({"options": {"startup_trials": -1}}, SpecError, "whole number from 0 on, but got -1"),
        ({"storage": "no url"}, SpecError, "must be a URL"),
        ({"storage": "nosuchdb://host/name"}, SpecError, "must be a URL"),
        ({"storage": "sqlite:////no/such/folder/study.db"}, InputError, "must answer"),
    ],
)
def test_a_search_that_cannot_begin_says_why(tmp_path, search_spec, error, words):
    with pytest.raises(error, match=words):
        search(tmp_path, make_job(**search_spec))


class Faulty:
    def propose(self, trial, space):
        raise KeyError("a bug")

    def sampler(self, seed):
        return optuna.samplers.RandomSampler(seed=seed)


class Foreign(Faulty):
    def propose(self, trial, space):
        return {"nowhere": space.layers[0].choices[1]}


@pytest.mark.parametrize(
    ("name", "words"), [("Faulty", "KeyError: 'a bug'"), ("Foreign", "gave block:1x1@0.5 to layer 'nowhere'")]
)
def test_a_faulty_strategy_ends_the_search_and_is_named(tmp_path, name, words):
    with pytest.raises(PluginError, match=words):
        search(tmp_path, make_job(strategy=f"{__name__}:{name}"))
    assert not (tmp_path / "trials").exists()
