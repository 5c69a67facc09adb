"""`greedy`: step by step the layer that gains most latency for what it loses, until accuracy breaks."""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from pruneaug.searcher.domination import hull
from pruneaug.searcher.limits import settle
from pruneaug.searcher.space import LayerSpace, SearchSpace
from pruneaug.sparsity.patterns import Assignment

STEPS = "steps"


class Greedy:
    """One path from dense to the fastest network; a trial is a number of steps on it, found by bisection.

    Each step moves one layer to its next choice on the convex front of latency against lost saliency: the layer that
    gains most latency for what it loses. Once neighbouring numbers of steps are feasible and not, nothing is trained
    any more.
    """

    def propose(self, trial: optuna.Trial, space: SearchSpace) -> Assignment:
        moves = path(space)
        steps = trial.suggest_int(STEPS, 0, len(moves))
        places = {layer.name: 0 for layer in space.layers}
        for name in moves[:steps]:
            places[name] += 1
        return settle(space, {layer.name: layer.choices[hull(layer)[places[layer.name]]] for layer in space.layers})

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return BisectionSampler()


def path(space: SearchSpace) -> list[str]:
    """The layer that moves in each step, best gain first."""
    waiting: list[tuple[float, int, int]] = []
    hulls = [hull(layer) for layer in space.layers]

    def push(number: int, place: int) -> None:
        if place + 1 < len(hulls[number]):
            heapq.heappush(waiting, (-_gain(space.layers[number], *hulls[number][place : place + 2]), number, place))

    for number in range(len(hulls)):
        push(number, 0)
    moves = []
    while waiting:
        _, number, place = heapq.heappop(waiting)
        moves.append(space.layers[number].name)
        push(number, place + 1)
    return moves


class BisectionSampler(optuna.samplers.BaseSampler):
    """Halves the range between the most steps that were feasible and the fewest beyond that were not."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> int:
        assert isinstance(param_distribution, IntDistribution)
        others = [past for past in study.get_trials(deepcopy=False) if STEPS in past.params]
        judged = [past for past in others if past.constraints and past.state.is_finished()]
        good = [past.params[STEPS] for past in judged if _is_feasible(past)]
        low = max(good, default=0)
        bad = [past.params[STEPS] for past in judged if not _is_feasible(past) and past.params[STEPS] > low]
        high = min(bad, default=param_distribution.high + 1)
        pending = [past.params[STEPS] for past in others if past.state == TrialState.RUNNING]
        marks = sorted({low, high, *(steps for steps in pending if low < steps < high)})
        start, end = max(pairwise(marks), key=lambda part: part[1] - part[0])
        return int((start + end) // 2)  # no step left: `low` again, which is not trained


def _gain(layer: LayerSpace, before: int, after: int) -> float:
    """Latency gained for what is lost."""
    gained = layer.latencies_us[before] - layer.latencies_us[after]
    if layer.lost is None:
        rows, cols = layer.layer.op.matrix_shape
        lost = (layer.choices[after].sparsity - layer.choices[before].sparsity) * rows * cols
    else:
        lost = layer.lost[after] - layer.lost[before]
    return gained / lost if lost > 0 else float("inf")


def _is_feasible(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())
