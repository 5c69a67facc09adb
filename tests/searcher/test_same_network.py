"""No network is trained twice."""

import numpy as np
import optuna
import pytest
from faulty import Faulty
from toy_search import make_job, make_parts, search

from pruneaug.searcher.executors.local import Local
from pruneaug.searcher.rundir import read_json
from pruneaug.searcher.strategies.budget_sampler import BudgetSampler


class Twice:
    """A strategy with two networks: it proposes the faster one first, and then the other one again and again."""

    def propose(self, trial, space):
        sparsity = 0.9 if trial.number == 0 else 0.7
        trial.suggest_float("sparsity", sparsity, sparsity)
        return {layer.name: layer.nearest(layer.patterns[-1], sparsity) for layer in space.layers}

    def sampler(self, seed):
        return optuna.samplers.RandomSampler(seed)


def twice(**options):
    return make_job(strategy=f"{__name__}:Twice", trials=5, **options)


def study_of(folder):
    return optuna.load_study(study_name=read_json(folder / "run.json")["study"], storage=f"sqlite:///{folder}/study.db")


def test_a_network_that_was_judged_is_not_trained_again_and_the_study_knows_what_came_of_it(tmp_path):
    result, evaluator = search(tmp_path, twice(), accuracy=lambda sparsity: 1.0 - 0.1 * sparsity)
    assert [trial.state for trial in result.trials] == ["complete", "complete", "skipped", "skipped", "skipped"]
    assert [trial.same_as for trial in result.trials] == [None, None, 1, 1, 1]
    assert len(evaluator.pruned) == 2
    first, *others = (trial.violation for trial in result.trials[1:])
    assert first > 0
    assert others == [first] * 3
    constraints = [trial.constraints["accuracy_loss"] for trial in study_of(tmp_path).trials]
    assert constraints == [trial.violation for trial in result.trials]
    assert not any(trial.feasible for trial in result.trials)


def test_a_study_that_was_lost_is_made_again_with_what_is_known_of_skipped_trials(tmp_path):
    infeasible = {"accuracy": lambda sparsity: 1.0 - 0.1 * sparsity}
    search(tmp_path, twice(), **infeasible)
    before = [(trial.state, trial.constraints) for trial in study_of(tmp_path).trials]
    (tmp_path / "study.db").unlink()
    search(tmp_path, twice(), **infeasible)
    assert [(trial.state, trial.constraints) for trial in study_of(tmp_path).trials] == before


def test_a_network_whose_training_failed_is_tried_again(tmp_path):
    evaluator = Faulty(tmp_path / "log", {2: ValueError("once")})
    result, _ = search(tmp_path / "run", twice(max_accuracy_loss=0.0), evaluator=evaluator)
    assert [trial.state for trial in result.trials] == ["complete", "failed", "complete", "skipped", "skipped"]
    assert [trial.same_as for trial in result.trials] == [None, None, None, 2, 2]


class Pair(Local):
    """Takes two works before it does any."""

    capacity = 2


def test_a_network_that_is_being_trained_is_not_begun_beside(tmp_path):
    job = twice(executor={"name": f"{__name__}:Pair"}, max_accuracy_loss=0.0)
    result, evaluator = search(tmp_path, job)
    assert len(evaluator.pruned) == 2
    assert {trial.same_as for trial in result.trials if trial.state == "skipped"} == {1}


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
@pytest.mark.parametrize("objective", ["latency", "accuracy"])
def test_allocate_trains_no_network_twice_however_few_there_are(tmp_path, kind, objective):
    limit = {"max_latency_ratio": 0.5} if objective == "accuracy" else {"max_accuracy_loss": 0.001}
    job = make_job(strategy="allocate", trials=20, objective=objective, **limit)
    job = job.model_copy(update={"space": job.space.model_copy(update={"steps": 1})})
    _, evaluator = search(tmp_path, job, parts=make_parts(kind))
    networks = [frozenset(each.items()) for each in evaluator.pruned]
    assert len(networks) > 2
    assert len(networks) == len(set(networks))


@pytest.mark.parametrize("options", [{}, {"strategy": "rule"}])
def test_for_accuracy_greedy_and_the_rule_train_one_network_within_the_limit(tmp_path, options):
    job = make_job(**{"strategy": "greedy", "trials": 8, "objective": "accuracy", "max_latency_ratio": 0.3, **options})
    result, evaluator = search(tmp_path, job)
    assert len(evaluator.pruned) == 1
    assert result.best.number == 0
    assert result.best.latency_us <= result.max_latency_us


def test_the_sampler_looks_for_a_new_network_beyond_the_candidates_that_all_give_a_known_one():
    known = {"budget": 0.0}
    sampler = BudgetSampler(0, lambda: "latency", lambda params: params["budget"] // 0.1, lambda params: 0.0)
    ranked = np.linspace(0.0, 1.0, 3000)[:, None]  # the first three hundred give the known one
    past = optuna.trial.create_trial(
        value=1.0, params=known, distributions={"budget": optuna.distributions.FloatDistribution(0.0, 1.0)}
    )
    (found,) = sampler._first_new(["budget"], ranked, [past])
    assert 0.1 <= found < 0.2
    assert sampler._first_new(["budget"], ranked[:300], [past]) == [0.0]
