"""A search space of six layers with known losses, for the tests of this folder."""

from dataclasses import replace

import optuna

from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.searcher.space import build_space
from pruneaug.spec.models import SpaceSpec
from pruneaug.testing.platform import analytic_table

WIDE, LAST = LinearOp(1024, 256, 256), LinearOp(1024, 256, 40)
CONV, POINT = Conv2dOp(4, 64, 64, 16, 16, (3, 3), padding=(1, 1, 1, 1)), Conv2dOp(4, 64, 128, 16, 16, (1, 1))
NETWORK = Network(
    (Layer("a", CONV), Layer("b", POINT), Layer("c", WIDE), Layer("d", WIDE), Layer("e", WIDE, 2), Layer("f", LAST))
)
PATTERNS, SPARSITIES = ["block:1x1", "block:4x1", "block:8x1"], [0.5, 0.7, 0.9]
TABLE = analytic_table([layer.op for layer in NETWORK.layers], PATTERNS, SPARSITIES)
SENSITIVITY = {"a": 3.0, "b": 1.0, "c": 0.5, "d": 0.5, "e": 1.5, "f": 4.0}


def loss_of(name, choice):
    """Larger blocks and sensitive layers lose more."""
    if choice.pattern is None:
        return 0.0
    return SENSITIVITY[name] * choice.sparsity ** (3 - 0.2 * choice.pattern.rows)


def make_space(rest_us=20.0, **options):
    spec = SpaceSpec(**{"patterns": PATTERNS, "sparsities": SPARSITIES, "steps": 2, **options})
    return scored(build_space(NETWORK, spec, TABLE, rest_us))


def scored(space):
    return replace(
        space,
        layers=tuple(
            replace(layer, lost=tuple(loss_of(layer.name, choice) for choice in layer.choices))
            for layer in space.layers
        ),
    )


def fixed(**params):
    return optuna.trial.FixedTrial(params)


def latency_us(space, assignment):
    """Off the list too."""
    times = (layer.layer.calls * TABLE.latency_us(layer.layer.op, assignment[layer.name]) for layer in space.layers)
    return space.rest_us + sum(times)


def fastest_us(space):
    return space.rest_us + sum(min(layer.latencies_us) for layer in space.layers)


def lost(assignment):
    return sum(loss_of(name, choice) for name, choice in assignment.items())


def search(strategy, space, loss, limit, trials, seed=0):
    """What a driver does, with `loss(assignment)` in place of training: the trained (assignment, us, loss)."""
    study = optuna.create_study(directions=["minimize"] * getattr(strategy, "directions", 1))
    trained, best = [], latency_us(space, strategy_dense(space))
    for number in range(trials):
        study.sampler = strategy.sampler(1000 * seed + number)
        trial = study.ask()
        assignment = strategy.propose(trial, space)
        us = latency_us(space, assignment)
        if us >= best and space.objective == "latency":
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        found = loss(assignment)
        trained.append((assignment, us, found))
        if space.objective == "accuracy":
            trial.set_constraint("latency", us / space.max_latency_us - 1)
            study.tell(trial, found)
            continue
        trial.set_constraint("accuracy_loss", found - limit)
        study.tell(trial, [us, found][: len(study.directions)])
        if found <= limit:
            best = us
    return trained


def strategy_dense(space):
    return {layer.name: layer.choices[0] for layer in space.layers}
