"""`greedy`, `rule` and `nsga2` on a space with known losses."""

from dataclasses import replace
from itertools import pairwise

import optuna
import pytest
from scored_space import fastest_us, fixed, latency_us, loss_of, lost, make_space, search

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
    assert times[-1] == pytest.approx(fastest_us(space))


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


@pytest.mark.parametrize("ratio", [0.95, 0.6, 0.3])
@pytest.mark.parametrize("max_patterns", [None, 1])
def test_for_accuracy_greedy_takes_the_fewest_steps_within_the_latency(ratio, max_patterns):
    space = make_space(max_patterns=max_patterns)
    space = replace(space, objective="accuracy", max_latency_us=ratio * space.dense_us)
    networks = [Greedy().propose(fixed(steps=steps), space) for steps in range(len(path(space)) + 1)]
    within = [each for each in networks if latency_us(space, each) <= space.max_latency_us]
    trained = search(Greedy(), space, mean_loss, 1.0, 3)
    assert trained[0][:2] == (within[0], latency_us(space, within[0]))


def test_for_accuracy_greedy_goes_on_where_a_network_turns_out_slower_than_its_times_say():
    space = make_space()
    space = replace(space, objective="accuracy", max_latency_us=0.6 * space.dense_us)
    study, steps = optuna.create_study(), []
    for number in range(3):
        greedy = Greedy()
        study.sampler = greedy.sampler(number)
        trial = study.ask()
        greedy.propose(trial, space)
        steps.append(trial.params["steps"])
        trial.set_constraint("latency", 0.01)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert steps == [steps[0], steps[0] + 1, steps[0] + 2]


def test_greedy_takes_more_steps_where_a_number_of_them_was_too_slow_to_be_trained():
    study, space, steps = optuna.create_study(), make_space(), []
    for number in range(3):
        study.sampler = Greedy().sampler(number)
        trial = study.ask()
        Greedy().propose(trial, space)
        steps.append(trial.params["steps"])
        trial.report(1.0, 0)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    assert steps == sorted(set(steps))


def test_a_slow_network_beyond_one_that_lost_too_much_does_not_count_for_greedy():
    study, space = optuna.create_study(), make_space()
    distributions = {"steps": optuna.distributions.IntDistribution(0, len(path(space)))}
    for steps, state, constraint in ((3, "PRUNED", None), (2, "COMPLETE", 0.01)):
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[state],
                value=1.0,
                params={"steps": steps},
                distributions=distributions,
                constraints={} if constraint is None else {"accuracy_loss": constraint},
            )
        )
    study.sampler = Greedy().sampler(0)
    trial = study.ask()
    Greedy().propose(trial, space)
    assert trial.params["steps"] == 1


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


@pytest.mark.parametrize("ratio", [0.7, 0.3])
def test_the_rule_keeps_the_latency_limit_of_the_search_unless_it_is_told_otherwise(ratio):
    space = make_space()
    limited = replace(space, objective="accuracy", max_latency_us=ratio * space.dense_us)
    assert Rule().propose(fixed(rule="apply"), limited) == Rule(latency=ratio).propose(fixed(rule="apply"), space)
    assert Rule().propose(fixed(rule="apply"), space) == Rule(latency=0.5).propose(fixed(rule="apply"), space)
    own = Rule(latency=0.5).propose(fixed(rule="apply"), limited)
    assert own == Rule(latency=0.5).propose(fixed(rule="apply"), space)
    with pytest.raises(SpecError, match=r"the latency limit of the search must be .* 0\.01 .* the rule reaches 0\.\d+"):
        Rule().propose(fixed(rule="apply"), replace(space, objective="accuracy", max_latency_us=0.01 * space.dense_us))


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
