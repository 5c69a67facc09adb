"""`nsga2`: the front of latency and accuracy, by a genetic algorithm."""

from __future__ import annotations

import optuna

from pruneaug.errors import SpecError
from pruneaug.searcher.domination import front
from pruneaug.searcher.limits import settle
from pruneaug.searcher.space import SearchSpace
from pruneaug.sparsity.patterns import Assignment


class Nsga2:
    """NSGA-II (Deb et al. 2002) on both figures, latency and accuracy loss.

    A layer's gene is a place among its choices that are not dominated, from the first (dense) to the fastest.
    `population`: trials of a generation.
    """

    directions = 2

    def __init__(self, population: int = 20) -> None:
        if isinstance(population, bool) or not isinstance(population, int) or population < 2:
            raise SpecError(f"search.options.population must be a whole number from 2 on, but got {population!r}")
        self._population = population

    def propose(self, trial: optuna.Trial, space: SearchSpace) -> Assignment:
        assignment = {}
        for layer in space.layers:
            if layer.patterns:
                indices = front(layer)
                place = trial.suggest_int(f"place {layer.name}", 0, len(indices) - 1)
                assignment[layer.name] = layer.choices[indices[place]]
        return settle(space, assignment)

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=self._population)
