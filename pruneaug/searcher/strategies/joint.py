"""`joint`: a pattern per group of equal layers and the network's sparsity, searched together."""

from __future__ import annotations

import optuna

from pruneaug.searcher.limits import settle
from pruneaug.searcher.space import SearchSpace
from pruneaug.searcher.strategies.parzen import checked_startup, parzen_sampler
from pruneaug.sparsity.patterns import Assignment, parse_pattern


class Joint:
    """The plain form of the joint search: one categorical per group of layers with the same op, and one sparsity.

    Every layer that is not dense gets the network's sparsity, or the nearest one that it may have.
    `startup_trials`: proposals drawn at random before the tree-structured Parzen estimator takes over.
    """

    def __init__(self, startup_trials: int = 10) -> None:
        self._startup_trials = checked_startup(startup_trials)

    def propose(self, trial: optuna.Trial, space: SearchSpace) -> Assignment:
        sparsity = trial.suggest_float("sparsity", *space.sparsity_range)
        assignment = {}
        for group in space.groups():
            names = ["dense", *(str(item) for item in group[0].patterns)]
            pattern = parse_pattern(trial.suggest_categorical(f"pattern {group[0].name}", names))
            assignment.update({layer.name: layer.nearest(pattern, sparsity) for layer in group})
        return settle(space, assignment)

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return parzen_sampler(seed, self._startup_trials)
