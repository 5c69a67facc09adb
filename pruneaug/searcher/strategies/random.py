"""`random`: every layer draws for itself."""

from __future__ import annotations

import optuna

from pruneaug.searcher.limits import settle
from pruneaug.searcher.space import SearchSpace
from pruneaug.sparsity.patterns import Assignment, parse_pattern


class Random:
    """Pattern (dense included) and sparsity of every layer, uniformly at random."""

    def propose(self, trial: optuna.Trial, space: SearchSpace) -> Assignment:
        assignment = {}
        for layer in space.layers:
            if layer.patterns:
                names = ["dense", *(str(item) for item in layer.patterns)]
                pattern = parse_pattern(trial.suggest_categorical(f"pattern {layer.name}", names))
                sparsity = trial.suggest_float(f"sparsity {layer.name}", *layer.sparsity_range)
                assignment[layer.name] = layer.nearest(pattern, sparsity)
        return settle(space, assignment)

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=seed)
