import shutil
import statistics
from dataclasses import replace

import optuna
import pytest
import torch
from toy_search import gentle, make_job, make_parts, search

from pruneaug.errors import RunError, TrainingError
from pruneaug.searcher.candidate import Candidate
from pruneaug.searcher.final import finalize, finished_trials, load_best
from pruneaug.searcher.rundir import RunDir, read_json
from pruneaug.searcher.weights import load_tensors, save_tensors
from pruneaug.testing.evaluator import AnalyticEvaluator
from pruneaug.testing.task import ToyTask


class Refining(AnalyticEvaluator):
    """A long fine-tuning that ends with a given accuracy."""

    def __init__(self, outcome):
        task, network, _ = make_parts()
        super().__init__(task, network, gentle)
        self.outcome = outcome

    def refine(self, weights, masks, **options):
        super().refine(weights, masks, **options)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        changed = {name: tensor + 1.0 for name, tensor in weights.items()}
        return Candidate(changed, masks, self.outcome, 5.0)


class CountingTask(ToyTask):
    """Counts the readings of the test data."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "read", [])

    def evaluate(self, model, split):
        self.read.append(split)
        return super().evaluate(model, split)


def test_the_longer_fine_tuning_is_kept_if_it_helps(tmp_path):
    result, _ = search(tmp_path, evaluator=Refining(0.999))
    assert result.best_accuracy == 0.999
    assert read_json(tmp_path / "best" / "record.json")["error"] is None


@pytest.mark.parametrize("outcome", [0.5, float("nan"), TrainingError("not finite")])
def test_the_trials_network_is_kept_if_the_longer_fine_tuning_does_not_help(tmp_path, outcome):
    result, _ = search(tmp_path, evaluator=Refining(outcome))
    assert result.best_accuracy == result.best.accuracy_validation
    kept = tmp_path / "weights" / str(result.best.number) / "model.safetensors"
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == kept.read_bytes()
    (finalist,) = read_json(tmp_path / "best" / "record.json")["finalists"]
    assert finalist["epochs"] == (5.0 if outcome == 0.5 else 0.0)  # what was trained in vain was spent all the same


def test_the_longer_fine_tuning_is_done_once_per_best_trial(tmp_path):
    first, evaluator = search(tmp_path, make_job(trials=3))
    assert evaluator.refined == 1
    assert search(tmp_path, make_job(trials=3))[1].refined == 0
    second, evaluator = search(tmp_path, make_job(trials=9))
    assert second.best.number != first.best.number
    assert evaluator.refined == 1
    assert load_best(make_parts()[0], RunDir(tmp_path)).trial == second.best


def test_the_test_data_is_read_once_for_each_network_however_often_it_is_asked_for(tmp_path):
    _, network, table = make_parts()
    task = CountingTask()
    result, _ = search(tmp_path, parts=(task, network, table))
    assert "test" not in task.read

    scores = [finalize(task, RunDir(tmp_path)) for _ in range(2)]

    assert task.read.count("test") == 2
    assert scores[0] == scores[1]
    best = load_best(task, RunDir(tmp_path))
    assert scores[0].best == ToyTask().evaluate(best.model, "test")
    assert best.trial == result.best


class Scripted:
    """Trial by trial, the sparsity of all layers."""

    def __init__(self, sparsities):
        self.sparsities = sparsities

    def propose(self, trial, space):
        trial.suggest_float("unused", 0.0, 1.0)
        sparsity = self.sparsities[trial.number]
        return {layer.name: layer.nearest(layer.patterns[-1], sparsity) for layer in space.layers}

    def sampler(self, seed):
        return optuna.samplers.RandomSampler(seed)


def scripted(*sparsities, finalists=1, repeats=0, **options):
    search = {"strategy": f"{__name__}:Scripted", "options": {"sparsities": sparsities}, "trials": len(sparsities)}
    job = make_job(**{**search, **options})
    finetune = job.finetune.model_copy(update={"finalists": finalists, "repeats": repeats})
    return job.model_copy(update={"finetune": finetune})


def test_the_test_data_is_read_again_for_another_network_of_the_same_trial(tmp_path):
    task, run = CountingTask(), RunDir(tmp_path)
    search(tmp_path)
    before = finalize(task, run)
    weights = load_tensors(run.best / "model.safetensors")
    save_tensors(run.best / "model.safetensors", {name: -tensor for name, tensor in weights.items()})

    after = [finalize(task, run) for _ in range(2)]

    assert task.read.count("test") == 3
    assert after[0] == after[1]
    assert after[0].dense == before.dense
    assert after[0].best == ToyTask().evaluate(load_best(task, run).model, "test") != before.best


def test_more_finalists_may_make_another_network_of_the_winning_trial_which_is_tested(tmp_path):
    class Changing(Recovering):
        def refine(self, weights, masks, **options):
            found = super().refine(weights, masks, **options)
            return replace(found, weights={name: -tensor for name, tensor in found.weights.items()})

    run = RunDir(tmp_path)
    # The first trial wins as it is: the faster one, fine-tuned for longer, stays beyond the limit.
    first, _ = search(tmp_path, scripted(0.7, 0.9, expected_recovery=0.02), evaluator=Changing(0.9))
    before = finalize(ToyTask(), run)
    second, _ = search(tmp_path, scripted(0.7, 0.9, expected_recovery=0.02, finalists=2), evaluator=Changing(0.9))
    assert first.best.number == second.best.number == 0
    assert first.best_accuracy < second.best_accuracy
    assert finalize(ToyTask(), run).best == ToyTask().evaluate(load_best(ToyTask(), run).model, "test") != before.best


def test_without_a_feasible_trial_only_the_dense_network_is_tested(tmp_path):
    search(tmp_path, accuracy=lambda sparsity: 0.0)
    task = CountingTask()
    scores = finalize(task, RunDir(tmp_path))
    assert scores.best is None
    assert scores.dense > 0.9
    assert task.read == ["test"]


def test_finalize_needs_a_dense_network(tmp_path):
    with pytest.raises(RunError, match=r"dense/model\.safetensors"):
        finalize(ToyTask(), RunDir(tmp_path))


class Recovering(AnalyticEvaluator):
    """The long fine-tuning brings back what the trial lost, but for `left` of it; seeds change a little."""

    def __init__(self, left=0.5):
        task, network, _ = make_parts()
        super().__init__(task, network, gentle)
        self.left, self.seeds = left, []

    def prune(self, assignment, *, seed, **options):
        self.seeds.append(seed)
        return super().prune(assignment, seed=seed, **options)

    def refine(self, weights, masks, *, seed, **options):
        accuracy = super().refine(weights, masks, seed=seed, **options).accuracy
        return Candidate(weights, masks, 1 - self.left * (1 - accuracy) - (seed % 100) * 1e-6, 5.0)


def test_a_faster_finalist_that_the_long_fine_tuning_makes_feasible_wins(tmp_path):
    alone, _ = search(tmp_path / "one", make_job(trials=12, strategy="random"), evaluator=Recovering())
    job = make_job(trials=12, strategy="random").model_copy(
        update={"finetune": make_job().finetune.model_copy(update={"finalists": 3})}
    )
    result, evaluator = search(tmp_path / "three", job, evaluator=Recovering())
    assert evaluator.refined > 1
    assert result.best.latency_us < alone.best.latency_us
    assert not result.best.feasible  # as a trial
    assert 1 - result.best_accuracy <= 0.02
    assert result.outcome == "found"
    record = read_json(tmp_path / "three" / "best" / "record.json")
    assert record["number"] == result.best.number
    assert {item["number"] for item in record["finalists"]} >= {alone.best.number, result.best.number}
    feasible = [result.trials[item["number"]] for item in record["finalists"] if item["feasible"]]
    assert result.best.latency_us == min(trial.latency_us for trial in feasible)
    dense_us = result.dense_latency_us
    assert finished_trials(RunDir(tmp_path / "three"), job.search, dense_us).keys() == set(range(12))
    assert search(tmp_path / "three", job, evaluator=Recovering())[1].refined == 0


def test_finalists_that_stay_infeasible_do_not_win(tmp_path):
    job = make_job(trials=12, strategy="random").model_copy(
        update={"finetune": make_job().finetune.model_copy(update={"finalists": 3})}
    )
    result, _ = search(tmp_path, job, evaluator=Recovering(left=0.999))
    assert result.best.feasible


@pytest.mark.parametrize("left", [0.5, 0.999])
def test_a_search_that_expects_recovery_ends_with_a_network_within_the_limit(tmp_path, left):
    job = make_job(trials=12, strategy="random", expected_recovery=0.02)
    result, evaluator = search(tmp_path, job, evaluator=Recovering(left))
    assert evaluator.refined == 1
    assert 1 - result.best_accuracy <= 0.02
    assert result.outcome == "found"
    assert (1 - result.best.accuracy_validation > 0.02) == (left == 0.5)
    record = read_json(tmp_path / "best" / "record.json")
    # What did not win enough back leaves the field to a trial that needs nothing won back, which was not refined.
    assert [item["feasible"] for item in record["finalists"]] == [left == 0.5]
    assert (record["epochs"] == 0) == (left != 0.5)
    assert load_best(make_parts()[0], RunDir(tmp_path)).trial == result.best
    assert search(tmp_path, job, evaluator=Recovering(left))[1].refined == 0


def test_recovery_that_does_not_come_is_told(tmp_path):
    job = make_job(trials=12, strategy="random", max_accuracy_loss=0.0, expected_recovery=0.03)
    result, _ = search(tmp_path, job, evaluator=Recovering(0.999))
    assert any(trial.feasible for trial in result.trials)
    assert result.best is None
    assert result.outcome == "infeasible"


def test_the_winner_is_made_again_with_other_seeds_and_each_repeat_only_once(tmp_path):
    job = make_job().model_copy(update={"finetune": make_job().finetune.model_copy(update={"repeats": 3})})
    result, evaluator = search(tmp_path, job, evaluator=Recovering())
    assert len(result.repeats) == 3
    assert len(set(evaluator.seeds)) == len(evaluator.seeds)
    assert evaluator.refined == 4
    assert evaluator.pruned[-3:] == [result.best.assignment] * 3
    assert result.repeats_mean == pytest.approx(statistics.mean(result.repeats))
    assert result.repeats_spread == pytest.approx(statistics.stdev(result.repeats))
    assert result.repeats_spread > 0
    kept = read_json(tmp_path / "best" / "record.json")["repeats"]
    assert [item["accuracy_validation"] for item in kept] == list(result.repeats)
    again, evaluator = search(tmp_path, job, evaluator=Recovering())
    assert (again.repeats, evaluator.refined) == (result.repeats, 0)
    more = make_job().model_copy(update={"finetune": make_job().finetune.model_copy(update={"repeats": 4})})
    again, evaluator = search(tmp_path, more, evaluator=Recovering())
    assert again.repeats[:3] == result.repeats
    assert (len(again.repeats), evaluator.refined) == (4, 1)


class Chained(Recovering):
    """Also notes what each long fine-tuning began with."""

    def __init__(self, left=0.5):
        super().__init__(left)
        self.origins = []

    def prune(self, assignment, *, session=None, **options):
        return super().prune(assignment, **options)

    def refine(self, weights, masks, *, session=None, **options):
        self.origins.append(None if session is None or session.origin is None else session.origin.weights)
        return super().refine({name: tensor + 1.0 for name, tensor in weights.items()}, masks, **options)


def test_a_finalist_begins_with_what_an_earlier_one_has_learnt_and_so_do_its_repeats(tmp_path):
    finetune = make_job().finetune.model_copy(update={"finalists": 3, "repeats": 1})
    job = make_job(trials=12, strategy="random", inherit=True).model_copy(update={"finetune": finetune})
    evaluator = Chained()
    result, _ = search(tmp_path, job, evaluator=evaluator)
    finalists = read_json(tmp_path / "best" / "record.json")["finalists"]
    assert len(finalists) == 2
    sources = [facts["inherited_from"] for facts in finalists]
    assert sources[0] is None
    numbers = [facts["number"] for facts in finalists]
    assert all(source in numbers[:index] for index, source in enumerate(sources) if index)
    (source,) = (facts["inherited_from"] for facts in finalists if facts["number"] == result.best.number)
    assert source is not None
    for begun, number in zip(evaluator.origins, [*sources, source], strict=True):
        if number is None:
            assert begun is None
            continue
        kept = load_tensors(tmp_path / "finals" / str(number) / "model.safetensors")
        assert all(torch.equal(begun[name], tensor) for name, tensor in kept.items())


def test_without_inheriting_finalists_are_independent(tmp_path):
    finetune = make_job().finetune.model_copy(update={"finalists": 3})
    job = make_job(trials=12, strategy="random").model_copy(update={"finetune": finetune})
    evaluator = Chained()
    search(tmp_path, job, evaluator=evaluator)
    assert evaluator.origins == [None] * 2


def test_more_trials_begin_with_what_the_finalists_have_learnt(tmp_path):
    def job(trials):
        return make_job(trials=trials, strategy="random", objective="front", max_accuracy_loss=0.5, inherit=True)

    class Noting(Chained):
        def prune(self, assignment, *, session=None, **options):
            self.origins.append(None if session is None or session.origin is None else session.origin.weights)
            return super().prune(assignment, **options)

    first, _ = search(tmp_path, job(6), evaluator=Noting())
    number = first.best.number
    refined = load_tensors(tmp_path / "finals" / str(number) / "model.safetensors")
    evaluator = Noting()
    result, _ = search(tmp_path, job(40), evaluator=evaluator)
    heirs = [trial.number for trial in result.trials[6:] if trial.inherited_from == number]
    assert heirs
    begun = [origin for origin in evaluator.origins if origin is not None]
    assert sum(all(torch.equal(origin[name], refined[name]) for name in refined) for origin in begun) >= len(heirs)


class Heirs(Chained):
    """Also notes what each trial began with."""

    def __init__(self, left=0.5):
        super().__init__(left)
        self.begun = []

    def prune(self, assignment, *, session=None, **options):
        self.begun.append(None if session is None or session.origin is None else session.origin.weights)
        candidate = super().prune(assignment, **options)
        # Every network has weights of its own.
        return replace(
            candidate, weights={name: tensor + len(self.begun) for name, tensor in candidate.weights.items()}
        )


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def origin_of(evaluator, result, number):
    """What a trial began with, of an evaluator that saw the whole search."""
    trained = [trial.number for trial in result.trials if trial.state == "complete"]
    return evaluator.begun[trained.index(number)]


@pytest.mark.parametrize(
    ("sparsities", "best", "source", "finalists"),
    [
        ((0.5, 0.6, 0.7, 0.9), 2, 1, 1),  # the source was used longer ago than `keep_weights` trials
        ((0.83, 0.775), 1, 0, 2),  # the source is a finalist
    ],
)
def test_repeats_begin_where_the_winner_began(tmp_path, sparsities, best, source, finalists):
    job = scripted(*sparsities, inherit=True, keep_weights=1, finalists=finalists, repeats=1)
    evaluator = Heirs(0.9)
    result, _ = search(tmp_path, job, evaluator=evaluator)
    assert (result.best.number, result.best.inherited_from) == (best, source)
    assert (tmp_path / "finals" / str(source) / "model.safetensors").exists() == (finalists == 2)
    assert_same(evaluator.begun[-1], origin_of(evaluator, result, best))


def test_repeats_of_a_winner_that_began_with_a_finalists_weights_begin_with_them_too(tmp_path):
    search(tmp_path, scripted(0.5, 0.7, inherit=True, trials=1), evaluator=Heirs())
    evaluator = Heirs()
    result, _ = search(tmp_path, scripted(0.5, 0.7, inherit=True, repeats=1), evaluator=evaluator)
    assert (result.best.number, result.best.inherited_from, result.best.inherited_refined) == (1, 0, True)
    kept = load_tensors(tmp_path / "finals" / "0" / "model.safetensors")
    assert len(evaluator.begun) == 2
    for begun in evaluator.begun:
        assert_same(begun, kept)


def test_repeats_whose_origin_is_gone_say_what_they_begin_with(tmp_path, caplog):
    search(tmp_path, scripted(0.5, 0.6, inherit=True), evaluator=Heirs())
    shutil.rmtree(tmp_path / "weights" / "0")
    search(tmp_path, scripted(0.5, 0.6, inherit=True, repeats=1), evaluator=(evaluator := Heirs()))
    assert evaluator.begun == [None]
    assert "the weights that trial 1 began with" in caplog.text
    assert "are gone: its repeats begin with the dense ones" in caplog.text
