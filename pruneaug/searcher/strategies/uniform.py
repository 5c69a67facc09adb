"""`uniform`: one pattern and one sparsity for the whole network."""

from __future__ import annotations

import optuna

from pruneaug.searcher.limits import settle
from pruneaug.searcher.space import SearchSpace
from pruneaug.searcher.strategies.parzen import checked_startup, parzen_sampler
from pruneaug.sparsity.patterns import Assignment, parse_pattern


class Uniform:
    """One pattern everywhere, as by hand. A layer that may not have the pattern stays dense.

    `startup_trials`: proposals drawn at random before the tree-structured Parzen estimator takes over.
    """

    def __init__(self, startup_trials: int = 10) -> None:
        self._startup_trials = checked_startup(startup_trials)

    def propose(self, trial: optuna.Trial, space: SearchSpace) -> Assignment:
        pattern = parse_pattern(trial.suggest_categorical("pattern", [str(item) for item in space.patterns]))
        sparsity = trial.suggest_float("sparsity", *space.sparsity_range)
        return settle(space, {layer.name: layer.nearest(pattern, sparsity) for layer in space.layers})

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return parzen_sampler(seed, self._startup_trials)
