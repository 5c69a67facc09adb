"""`greedy`, `rule` and `nsga2` on a space with known losses."""

from dataclasses import replace
from itertools import pairwise

import optuna
import pytest
from scored_space import fixed, latency_us, loss_of, lost, make_space, search

from pruneaug.errors import SpecError
from pruneaug.searcher.domination import front
from pruneaug.searcher.strategies.greedy import Greedy, path
from pruneaug.searcher.strategies.nsga2 import Nsga2
from pruneaug.searcher.strategies.rule import Rule, best_blocks
from pruneaug.sparsity.patterns import DENSE, ELEMENT


def mean_loss(assignment):
    return 0.01 * lost(assignment)


def test_the_greedy_path_runs_from_dense_and_each_step_is_faster_and_loses_more():
    space = make_space()
    steps = len(path(space))
    networks = [Greedy().propose(fixed(steps=step), space) for step in range(steps + 1)]
    assert set(networks[0].values()) == {DENSE}
    times = [latency_us(space, each) for each in networks]
    losses = [lost(each) for each in networks]
    assert times == sorted(times, reverse=True)
    assert losses == sorted(losses)
    assert times[-1] == pytest.approx(space.best_possible_us())


def test_each_greedy_step_gains_most_latency_for_what_it_loses():
    space = make_space()
    networks = [Greedy().propose(fixed(steps=step), space) for step in range(len(path(space)) + 1)]
    gains = [(latency_us(space, a) - latency_us(space, b)) / (lost(b) - lost(a)) for a, b in pairwise(networks)]
    assert gains == pytest.approx(sorted(gains, reverse=True))


def test_greedy_finds_the_last_step_that_is_accurate_enough_by_halving():
    space = make_space()
    steps = len(path(space))
    feasible = [step for step in range(steps + 1) if mean_loss(Greedy().propose(fixed(steps=step), space)) <= 0.04]
    trained = search(Greedy(), space, mean_loss, 0.04, 40)
    best = min(us for _, us, loss in trained if loss <= 0.04)
    assert best == pytest.approx(latency_us(space, Greedy().propose(fixed(steps=feasible[-1]), space)))
    assert len(trained) <= steps.bit_length() + 1


def test_greedy_trials_that_run_at_the_same_time_differ():
    study, space = optuna.create_study(), make_space()
    found = []
    for number in range(4):
        study.sampler = Greedy().sampler(number)
        trial = study.ask()
        Greedy().propose(trial, space)
        found.append(trial.params["steps"])
    assert len(set(found)) == 4


def test_the_rule_takes_the_fastest_block_that_loses_no_more_than_single_weights_do():
    space = make_space()
    for layer in space.layers:
        most = loss_of(layer.name, layer.nearest(ELEMENT, 0.7))
        chosen = best_blocks(space, 0.7)[layer.name]
        allowed = [
            us
            for choice, us in zip(layer.choices, layer.latencies_us)
            if loss_of(layer.name, choice) <= most * (1 + 1e-12)
        ]
        assert layer.latencies_us[layer.choices.index(chosen)] == min(allowed)


def test_the_rule_at_a_latency_is_at_the_lowest_sparsity_that_reaches_it():
    space = make_space()
    assignment = Rule(latency=0.6).propose(fixed(rule="apply"), space)
    assert latency_us(space, assignment) <= 0.6 * space.dense_us
    steps = sorted({choice.sparsity for layer in space.layers for choice in layer.choices})
    slower = [at for at in steps if latency_us(space, best_blocks(space, at)) > 0.6 * space.dense_us]
    assert assignment == best_blocks(space, steps[len(slower)])


def test_the_rule_trains_one_network_whatever_becomes_of_it():
    for limit in (0.0, 1.0):
        assert len(search(Rule(latency=0.6), make_space(), mean_loss, limit, 10)) == 1


@pytest.mark.parametrize(
    "options", [{"latency": 0.0}, {"sparsity": 1.5}, {"latency": "fast"}, {"latency": 0.5, "sparsity": 0.5}]
)
def test_the_rule_refuses_what_is_no_fraction(options):
    with pytest.raises(SpecError, match="must be one of `latency` and `sparsity`"):
        Rule(**options)


def test_a_latency_that_the_rule_cannot_reach_is_an_error_with_the_reachable_one():
    with pytest.raises(SpecError, match=r"0\.01 of the dense network's .* the rule reaches 0\.\d+; raise it"):
        Rule(latency=0.01).propose(fixed(rule="apply"), make_space())


def test_nsga2_proposes_only_choices_that_are_not_dominated():
    space = make_space()
    params = {f"place {layer.name}": 1 for layer in space.layers}
    assignment = Nsga2().propose(fixed(**params), space)
    for layer in space.layers:
        assert assignment[layer.name] == layer.choices[front(layer)[1]]


def test_nsga2_improves_the_front_from_generation_to_generation():

    space = replace(make_space(), objective="front")
    trained = search(Nsga2(population=10), space, mean_loss, 1.0, 120)
    scale = space.dense_us

    def worth(part):
        return min(us / scale + 10 * loss for _, us, loss in part)

    assert worth(trained[-40:]) < worth(trained[:20])


@pytest.mark.parametrize("population", [1, 2.5, True])
def test_nsga2_refuses_a_population_that_is_none(population):
    with pytest.raises(SpecError, match="population must be a whole number from 2 on"):
        Nsga2(population)
