import itertools
from dataclasses import replace

import numpy as np
import optuna
import pytest
from scored_space import fastest_us, fixed, latency_us, loss_of, lost, make_space, search

from pruneaug.errors import SpecError
from pruneaug.searcher import decoding
from pruneaug.searcher.domination import undominated
from pruneaug.searcher.strategies.allocate import Allocate, budget_us, layer_features, sensitivities
from pruneaug.searcher.strategies.budget_sampler import BudgetSampler
from pruneaug.searcher.strategies.joint import Joint
from pruneaug.sparsity.patterns import DENSE

ZEROS = {"depth": 0.0, "weights": 0.0, "pointwise": 0.0, "power": 0.0, "block": 0.0}


def propose(space, budget=0.5, strategy=None, **coefficients):
    return (strategy or Allocate()).propose(fixed(**{"budget": budget, **ZEROS, **coefficients}), space)


def test_the_proposal_loses_least_of_all_assignments_within_the_budget():
    space = make_space(patterns=["block:4x1", "block:8x1"], sparsities=[0.5, 0.9], steps=1)
    names = [layer.name for layer in space.layers]
    most_us = budget_us(0.4, fastest_us(space), space)
    best = min(
        sum(loss_of(name, choice) for name, choice in zip(names, choices))
        for choices in itertools.product(*(layer.choices for layer in space.layers))
        if latency_us(space, dict(zip(names, choices))) <= most_us
    )
    assignment = propose(space, 0.4)
    assert latency_us(space, assignment) <= most_us
    assert lost(assignment) == pytest.approx(best)


def test_budgets_run_from_the_least_possible_latency_to_dense_on_a_logarithmic_scale():
    space = make_space()
    least_us = fastest_us(space)
    assert latency_us(space, propose(space, 0.0)) == pytest.approx(least_us)
    assert set(propose(space, 1.0).values()) == {DENSE}
    assert budget_us(0.5, least_us, space) == pytest.approx((least_us * space.dense_us) ** 0.5)


def test_a_latency_limit_is_the_largest_budget():
    space = make_space(rest_us=0.0)
    limit_us = 0.5 * space.dense_us
    limited = replace(space, objective="accuracy", max_latency_us=limit_us)
    assert 0.9 * limit_us < latency_us(space, propose(limited, 1.0)) <= limit_us


def test_a_choice_that_gains_nothing_over_dense_is_never_taken():
    space = make_space()
    slow = [
        (layer.name, choice)
        for layer in space.layers
        for choice, us in zip(layer.choices, layer.latencies_us)
        if not choice.is_dense and us >= layer.latencies_us[0]
    ]
    assert slow
    for budget in np.linspace(0, 1, 9):
        assert not set(propose(space, budget).items()) & set(slow)


def test_a_coefficient_moves_the_loss_to_the_layers_it_favours():
    space = make_space()
    early, late = propose(space, depth=-1.0), propose(space, depth=1.0)
    assert early["a"].sparsity <= late["a"].sparsity
    assert early["f"].sparsity >= late["f"].sparsity
    assert early != late


def test_coefficients_of_zero_leave_the_losses_as_they_are():
    space = make_space()
    found = sensitivities(space, layer_features(space), ZEROS)
    for layer, losses in zip(space.layers, found, strict=True):
        assert losses == pytest.approx(layer.lost)


def test_features_span_minus_one_to_one_and_only_what_differs_is_there():
    features = layer_features(make_space())
    assert set(features) == {"depth", "weights", "pointwise"}
    assert all((values.min(), values.max()) == (-1.0, 1.0) for values in features.values())
    space = make_space()
    assert set(layer_features(replace(space, layers=space.layers[2:4]))) == {"depth"}


@pytest.mark.parametrize("max_patterns", [1, 2])
def test_a_network_has_no_more_patterns_than_allowed(max_patterns):
    space = make_space(max_patterns=max_patterns)
    for budget in (0.0, 0.3, 0.7):
        used = {choice.pattern for choice in propose(space, budget).values()} - {None}
        assert len(used) <= max_patterns


def test_layers_that_share_get_the_same_choice():
    assignment = propose(make_space(share=True), 0.3)
    assert assignment["c"] == assignment["d"] == assignment["e"]


def test_layers_of_a_named_group_share_what_loses_least_for_them_together():
    space = make_space(
        patterns=["block:4x1", "block:8x1"], sparsities=[0.5, 0.9], steps=1, layers=[{"match": "[acf]", "group": "g"}]
    )
    most_us = budget_us(0.4, fastest_us(space), space)
    names = [layer.name for layer in space.layers]
    allowed = [
        assignment
        for choices in itertools.product(*(layer.choices for layer in space.layers))
        if (assignment := dict(zip(names, choices, strict=True)))["a"] == assignment["c"] == assignment["f"]
        and latency_us(space, assignment) <= most_us
    ]
    found = propose(space, 0.4)
    assert found["a"] == found["c"] == found["f"] != DENSE
    assert lost(found) == pytest.approx(min(map(lost, allowed)))


def test_parameters_and_operations_can_be_limited_beside_the_latency():
    space = make_space()
    sizes = {layer.name: np.prod(layer.layer.op.matrix_shape) for layer in space.layers}
    macs = {layer.name: layer.layer.op.macs * layer.layer.calls for layer in space.layers}
    for option, whole in (("parameters", sizes), ("operations", macs)):
        assignment = propose(space, 1.0, Allocate(**{option: 0.4}))
        kept = sum(whole[name] * (1 - choice.sparsity) for name, choice in assignment.items())
        assert kept <= 0.4 * sum(whole.values()) * (1 + 1e-8)


def test_a_limit_that_cannot_be_met_names_what_can():
    with pytest.raises(SpecError, match=r"limit of parameters must be at least what can be reached, \d"):
        propose(make_space(), 0.5, Allocate(parameters=0.01))
    space = make_space()
    with pytest.raises(SpecError, match=rf"latency .* {fastest_us(space):.6g} us, but got 1 us"):
        decoding.least_lost(space, [decoding.latency_limit(space, 1.0)], decoding.layer_losses(space))


@pytest.mark.parametrize("value", [0, 1.5, "a", True])
def test_a_limit_that_is_no_fraction_is_refused(value):
    with pytest.raises(SpecError, match=r"search.options.parameters must be a fraction in \(0, 1\]"):
        Allocate(parameters=value)


def test_the_least_latency_within_a_loss_is_the_dual_of_the_least_loss_within_a_latency():
    space = undominated(make_space())
    losses = decoding.layer_losses(space)
    assignment = decoding.fastest(space, [decoding.loss_limit(losses, 2.0)])
    assert lost(assignment) <= 2.0 * (1 + 1e-8)
    us = latency_us(space, assignment)
    back = decoding.least_lost(space, [decoding.latency_limit(space, us * (1 + 1e-9))], losses)
    assert lost(back) <= lost(assignment) * (1 + 1e-7)


def test_without_scores_sparse_weights_are_what_is_lost():
    space = make_space()
    unscored = replace(space, layers=tuple(replace(layer, lost=None) for layer in space.layers))
    assert not unscored.is_scored
    assert latency_us(space, propose(unscored, 0.3)) <= budget_us(0.3, fastest_us(space), space) * (1 + 1e-9)


def test_the_first_proposal_is_the_plain_allocation_at_half_the_way():
    study = optuna.create_study()
    study.sampler = Allocate().sampler(0)
    trial = study.ask()
    Allocate().propose(trial, make_space())
    assert {name: value for name, value in trial.params.items() if name != "budget"} == ZEROS
    assert abs(trial.params["budget"] - 0.5) <= 0.02


def accuracy_loss(assignment):
    """Not the saliency: later layers matter more, and all of it is squared."""
    weights = {"a": 1.0, "b": 0.6, "c": 0.7, "d": 1.2, "e": 0.4, "f": 2.0}
    return 0.004 * sum(weights[name] * loss_of(name, choice) for name, choice in assignment.items()) ** 2


def test_few_trials_reach_what_the_plain_search_reaches_in_many():
    space = make_space()
    for seed in range(3):
        plain = search(Joint(), space, accuracy_loss, 0.05, 100, seed)
        goal = min(us for _, us, loss in plain if loss <= 0.05)
        ours = search(Allocate(), space, accuracy_loss, 0.05, max(4, len(plain) // 5), seed)
        assert min(us for _, us, loss in ours if loss <= 0.05) <= goal


def test_no_proposal_is_slower_than_the_best_feasible_one():
    space = make_space()
    assert len(search(Allocate(), space, accuracy_loss, 0.05, 15)) >= 14


def test_for_accuracy_every_proposal_uses_the_whole_budget_and_losses_fall():
    space = make_space()
    limited = replace(space, objective="accuracy", max_latency_us=0.5 * space.dense_us)
    trained = search(Allocate(), limited, accuracy_loss, 0.0, 15)
    assert all(us <= limited.max_latency_us for _, us, _ in trained)
    assert min(us for _, us, _ in trained) > 0.95 * limited.max_latency_us
    assert min(loss for *_, loss in trained) < trained[0][2]


def test_for_the_front_budgets_are_spread():
    space = replace(make_space(), objective="front")
    times = sorted(us for _, us, _ in search(Allocate(), space, accuracy_loss, 0.05, 20))
    assert times[-1] > 1.5 * times[0]


def test_proposals_that_run_at_the_same_time_differ():
    study, space = optuna.create_study(), make_space()
    points = []
    for number in range(6):
        study.sampler = Allocate().sampler(number)
        trial = study.ask()
        Allocate().propose(trial, space)
        points.append(tuple(trial.params.values()))
    assert len(set(points)) == 6
    budgets = [budget for budget, *_ in points]
    assert max(budgets) - min(budgets) > 0.1


def test_a_sampler_knows_the_objective_before_it_draws():
    strategy = Allocate()
    sampler = strategy.sampler(0)
    assert isinstance(sampler, BudgetSampler)
    space = replace(make_space(), objective="front")
    propose(space, strategy=strategy)
    assert sampler._objective() == "front"


def test_a_search_from_a_pruned_network_goes_below_what_its_zeros_give():
    space = make_space()
    layers = []
    for layer in space.layers:  # 80 % are zero already, in any pattern
        lost = [0.0 if choice.sparsity <= 0.8 else loss for choice, loss in zip(layer.choices, layer.lost, strict=True)]
        layers.append(replace(layer, lost=tuple(lost)))
    pruned = replace(space, layers=tuple(layers))
    times = [us for _, us, _ in search(Allocate(), pruned, lambda assignment: 0.0, 0.0, 4)]
    assert times[0] == pytest.approx(latency_us(pruned, propose(pruned, 1.0)))  # half of the budget was more than that
    assert len(times) > 1
    assert times == sorted(times, reverse=True)
