"""`uniform`: one pattern and one sparsity for the whole network."""

from __future__ import annotations

import optuna

from pruneaug.search.space import SearchSpace
from pruneaug.sparsity.patterns import Assignment, parse_pattern


class Uniform:
    """One pattern everywhere, as by hand. A layer that may not have the pattern stays dense.

    `startup_trials`: proposals drawn at random before the tree-structured Parzen estimator takes over.
    """

    def __init__(self, startup_trials: int = 10) -> None:
        self._startup_trials = startup_trials

    def propose(self, trial: optuna.Trial, space: SearchSpace) -> Assignment:
        pattern = parse_pattern(trial.suggest_categorical("pattern", [str(item) for item in space.patterns]))
        sparsity = trial.suggest_float("sparsity", *space.sparsity_range)
        return {layer.name: layer.nearest(pattern, sparsity) for layer in space.layers}

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._startup_trials)
