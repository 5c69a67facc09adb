import itertools
import math
import re

import optuna
import pytest
from toy_search import PATTERNS, REST_US, SPARSITIES, make_job, make_parts, search

from pruneaug.errors import SpecError
from pruneaug.latency.network import predict
from pruneaug.searcher.objective import Goal, non_dominated
from pruneaug.searcher.rundir import read_json
from pruneaug.searcher.space import build_space
from pruneaug.searcher.trial import TrialRecord
from pruneaug.sparsity.patterns import Block
from pruneaug.spec.models import LayerRule
from pruneaug.testing.platform import analytic_table


def record(number, latency_us, loss=None, *, max_loss=0.02, rungs=(), state=None):
    violation = None if loss is None else loss - max_loss
    return TrialRecord(
        number,
        state or ("skipped" if loss is None else "complete"),
        {},
        {},
        0.5,
        latency_us,
        None if loss is None else 1 - loss,
        loss,
        violation,
        rungs=rungs,
    )


def records(*items):
    return {item.number: item for item in items}


def goal(objective="latency", limit_us=None):
    return Goal(objective, 100.0, 1.0, 0.02, limit_us)


def beats(one, other):
    no_worse = one.latency_us <= other.latency_us and one.accuracy_loss <= other.accuracy_loss
    return no_worse and (one.latency_us < other.latency_us or one.accuracy_loss < other.accuracy_loss)


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_beats(seed):
    values = [(math.sin(seed * 37 + i * 11) + 2, math.cos(seed * 17 + i * 7) + 1) for i in range(30)]
    items = [record(i, round(latency, 1), round(loss, 1)) for i, (latency, loss) in enumerate(values)]
    front = non_dominated(items)
    reference = {(r.latency_us, r.accuracy_loss) for r in items if not any(beats(o, r) for o in items)}
    assert {(r.latency_us, r.accuracy_loss) for r in front} == reference
    assert len(front) == len(reference)
    assert all(a.latency_us < b.latency_us for a, b in itertools.pairwise(front))


def test_the_least_latency_wins_and_what_is_no_faster_cannot():
    done = records(record(0, 80, 0.01), record(1, 60, 0.02), record(2, 40, 0.03), record(3, 50))
    assert goal().best(done).number == 1
    assert goal().can_win(59, done)
    assert not goal().can_win(60, done)
    assert not goal().can_win(100, {})


def test_the_least_loss_within_the_latency_wins_and_what_is_slower_cannot():
    accuracy = goal("accuracy", 70.0)
    done = {
        r.number: TrialRecord(
            r.number,
            r.state,
            {},
            {},
            0.5,
            r.latency_us,
            r.accuracy_validation,
            r.accuracy_loss,
            accuracy.violation(r.accuracy_loss, r.latency_us),
        )
        for r in (record(0, 80, 0.01), record(1, 60, 0.05), record(2, 40, 0.06))
    }
    assert accuracy.best(done).number == 1
    assert accuracy.can_win(70, done)
    assert not accuracy.can_win(71, done)
    assert accuracy.loss_to_beat(65, done) == 0.01
    assert [accuracy.values(done[1], 1), accuracy.values(done[1], 2)] == [[0.05], [60, 0.05]]


def test_in_a_front_only_what_a_faster_network_without_loss_beats_cannot_win():
    front = goal("front")
    done = records(record(0, 80, 0.0), record(1, 60, 0.05))
    assert front.can_win(70, done)
    assert not front.can_win(80, done)
    assert front.loss_to_beat(70, done) == 0.05
    assert front.constraints(done[1], 2) == {}


def test_finalists_are_the_best_and_the_faster_ones_that_nearly_keep_the_loss():
    done = records(record(0, 80, 0.01), record(1, 50, 0.03), record(2, 60, 0.025), record(3, 90, 0.005))
    assert [r.number for r in goal().finalists(done, 1, {})] == [0]
    assert [r.number for r in goal().finalists(done, 3, {})] == [0, 2, 1]
    assert [r.number for r in goal().finalists(records(record(1, 60, 0.03)), 1, {})] == []
    assert [r.number for r in goal().finalists(records(record(1, 60, 0.03)), 2, {})] == [1]


def test_what_a_finalist_won_back_tells_which_one_is_next():
    done = records(record(0, 80, 0.02), record(1, 40, 0.05), record(2, 50, 0.04), record(3, 60, 0.03))
    won_back = [(0.005, 3), (0.012, 3), (0.021, 2), (0.03, 1)]
    for recovery, number in won_back:
        assert goal().finalists(done, 2, {0: 0.02 - recovery})[0].number == number
    assert goal().finalists(done, 1, {0: 0.0}) == []
    after_success = goal().finalists(done, 9, {0: 0.0, 2: 0.015})
    assert [r.number for r in after_success] == [1]  # what is slower than a finalist within the limit cannot win
    after_failure = goal().finalists(done, 9, {0: 0.0, 2: 0.025})
    assert [r.number for r in after_failure] == [3, 1]


def test_trials_may_lose_what_the_final_fine_tuning_is_expected_to_win_back():
    patient = Goal("latency", 100.0, 1.0, 0.02, expected_recovery=0.01)
    items = [(0, 80, 0.02), (1, 70, 0.025), (2, 60, 0.03), (3, 50, 0.031)]
    done = records(*(record(n, latency, loss, max_loss=0.03) for n, latency, loss in items))
    assert [patient.violation(loss, latency) <= 0 for _, latency, loss in items] == [True, True, True, False]
    assert patient.best(done).number == 2
    assert [patient.ends_with(loss, done[n]) for n, _, loss in items] == [True, False, False, False]
    # As far as the one that needs nothing won back: it is what is left if the faster ones fail.
    assert [r.number for r in patient.wanted(done, 1)] == [2, 1, 0]
    assert [r.number for r in patient.finalists(done, 1, {})] == [2]
    assert [r.number for r in patient.finalists(done, 2, {2: 0.024})] == [1]
    assert [r.number for r in patient.finalists(done, 2, {2: 0.019})] == [3]


def test_a_stopped_trial_is_held_against_the_limit_at_its_last_rung():
    stopped = record(0, 50, state="stopped", rungs=((1.0, 0.9), (2.0, 0.95)))
    assert goal().constraints(stopped, 1) == {"accuracy_loss": pytest.approx(0.03)}


def test_an_accuracy_search_keeps_its_limit_and_finds_the_least_loss(tmp_path):
    job = make_job(trials=12, objective="accuracy", max_latency_ratio=0.6)
    result, _ = search(tmp_path, job)
    assert result.best is not None
    trained = [trial for trial in result.trials if trial.state == "complete"]
    limit = 0.6 * result.dense_latency_us
    assert all(trial.latency_us <= limit for trial in trained)
    assert all(trial.latency_us > limit for trial in result.trials if trial.state == "skipped")
    assert result.best.accuracy_loss == min(trial.accuracy_loss for trial in trained)


def test_a_front_search_keeps_the_networks_of_the_front(tmp_path):
    result, _ = search(tmp_path, make_job(trials=12, objective="front", strategy="random"))
    numbers = {trial.number for trial in result.front}
    assert len(numbers) > 1
    assert {int(folder.name) for folder in (tmp_path / "weights").iterdir()} >= numbers
    assert result.best.latency_us == min(t.latency_us for t in result.trials if t.feasible)


def test_an_unreachable_latency_names_the_reachable_one(tmp_path):
    task, network, table = make_parts()
    for limit in ({"max_latency_ms": 1e-6}, {"max_latency_ratio": 1e-3}):
        job = make_job(objective="accuracy", **limit)
        with pytest.raises(SpecError, match=rf"{next(iter(limit))} must .* of this space takes 0\.\d+ ms") as raised:
            search(tmp_path / "run", job, parts=(task, network, table))
        advised = float(re.search(r"raise it to ([\d.e-]+) or more", str(raised.value)).group(1))
        space = build_space(network, job.space, table)
        dense_us = predict(network, {}, table, REST_US).total_us
        least_us = REST_US + sum(min(layer.latencies_us) for layer in space.layers)
        least = least_us / (1e3 if "max_latency_ms" in limit else dense_us)
        assert least <= advised <= 1.011 * least
        assert not (tmp_path / "run").exists()  # nothing was trained, and the mended job may use the folder


def with_space(job, **changes):
    return job.model_copy(update={"space": job.space.model_copy(update=changes)})


def test_a_latency_that_max_patterns_puts_out_of_reach_is_unreachable(tmp_path):
    task, network, _ = make_parts()
    rules = [LayerRule(match=network.layers[0].name, patterns=["block:1x1"])]
    table = analytic_table([layer.op for layer in network.layers], PATTERNS, SPARSITIES)
    job = with_space(make_job(strategy="allocate", trials=5, objective="accuracy", max_latency_ratio=0.2), layers=rules)

    space = build_space(network, job.space, table, REST_US)
    free_us = REST_US + sum(min(layer.latencies_us) for layer in space.layers)
    one_us = min(  # with one pattern, by brute force
        REST_US
        + sum(
            min(us for us, choice in zip(layer.latencies_us, layer.choices, strict=True) if str(choice.pattern) in kept)
            for layer in space.layers
        )
        for kept in ({"None", pattern} for pattern in PATTERNS)
    )
    dense_us = predict(network, {}, table, REST_US).total_us
    assert free_us < 0.99 * one_us
    ratio = (free_us + one_us) / 2 / dense_us

    def limited(ratio, **space):
        search = job.search.model_copy(update={"max_latency_ratio": ratio})
        return with_space(job.model_copy(update={"search": search}), **space)

    with pytest.raises(SpecError, match=r"max_latency_ratio must be reachable") as raised:
        search(tmp_path / "one", limited(ratio, max_patterns=1), parts=(task, network, table))
    assert f"takes {one_us / 1e3:.4g} ms" in str(raised.value)
    assert not (tmp_path / "one").exists()
    result, _ = search(tmp_path / "two", limited(ratio, max_patterns=2), parts=(task, network, table))
    assert result.best is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [({"parameters": 0.01}, "the limit of parameters must be at least"), ({"operations": 0.01}, "limit of operations")],
)
@pytest.mark.parametrize("objective", ["latency", "accuracy"])
def test_limits_of_allocate_that_cannot_be_met_are_found_before_the_dense_training(tmp_path, options, words, objective):
    limit = {"max_latency_ratio": 0.5} if objective == "accuracy" else {}
    job = make_job(strategy="allocate", options=options, objective=objective, **limit)
    with pytest.raises(SpecError, match=words):
        search(tmp_path / "run", job)
    assert not (tmp_path / "run").exists()


class Slow:
    """A strategy whose networks are faster than dense, and over any limit that is much faster."""

    def propose(self, trial, space):
        trial.suggest_float("unused", 0.0, 1.0)
        return {space.layers[0].name: space.layers[0].nearest(Block(8, 1), 0.7)}

    def sampler(self, seed):
        return optuna.samplers.RandomSampler(seed)


def test_a_search_in_which_all_is_over_the_latency_limit_says_so(tmp_path):
    job = make_job(strategy=f"{__name__}:Slow", trials=4, objective="accuracy", max_latency_ratio=0.3)
    result, evaluator = search(tmp_path, job)
    assert evaluator.pruned == []
    assert all(0.3 * result.dense_latency_us < t.latency_us < result.dense_latency_us for t in result.trials)
    assert result.outcome == "infeasible"
    limit_ms = 0.3 * result.dense_latency_us / 1e3
    assert result.how_close == (
        f"4 of 4 trials were predicted to be over the limit, and only a latency of {limit_ms:.4g} ms is allowed"
    )
    assert not any(trial.feasible for trial in result.trials)
    over = [trial.violation for trial in result.trials]
    assert over == pytest.approx([trial.latency_us / (0.3 * result.dense_latency_us) - 1 for trial in result.trials])
    study = optuna.load_study(
        study_name=read_json(tmp_path / "run.json")["study"], storage=f"sqlite:///{tmp_path}/study.db"
    )
    assert [trial.constraints["latency"] for trial in study.trials] == over


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "accuracy"}, "needs one of max_latency_ms and max_latency_ratio, but got none"),
        ({"max_latency_ms": 1.0}, "goes with objective `accuracy`"),
    ],
)
def test_limits_go_with_their_objective(options, words):
    with pytest.raises(SpecError, match=words):
        make_job(**options)
