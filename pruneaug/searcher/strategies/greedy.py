"""`greedy`: step by step the layer that gains most latency for what it loses, until accuracy breaks."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from pruneaug.searcher.domination import hull
from pruneaug.searcher.limits import listed_us, settle
from pruneaug.searcher.space import LayerSpace, SearchSpace
from pruneaug.sparsity.patterns import Assignment

STEPS = "steps"


class Greedy:
    """One path from dense to the fastest network; a trial is a number of steps on it, found by bisection.

    Each step moves one layer to its next choice on the convex front of latency against lost saliency: the layer that
    gains most latency for what it loses. Once neighbouring numbers of steps are feasible and not, nothing is trained
    any more. Of objective `accuracy` it is the fewest steps that keep the latency limit, which needs no halving.
    """

    def __init__(self) -> None:
        self._space: SearchSpace | None = None

    def propose(self, trial: optuna.Trial, space: SearchSpace) -> Assignment:
        self._space = space  # the sampler draws at `suggest`
        moves = path(space)
        return network_after(space, moves[: trial.suggest_int(STEPS, 0, len(moves))])

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return StepSampler(self._fewest)

    def _fewest(self) -> int | None:
        if self._space is None or self._space.objective != "accuracy":
            return None
        return fewest_steps(self._space)


def network_after(space: SearchSpace, moves: Sequence[str]) -> Assignment:
    """The network after these steps from dense, as the space demands it."""
    places = Counter(moves)
    return settle(space, {layer.name: layer.choices[hull(layer)[places[layer.name]]] for layer in space.layers})


@lru_cache(maxsize=4)
def fewest_steps(space: SearchSpace) -> int:
    """The fewest steps to a pruned network that keeps the latency limit; all of them if none does."""
    moves = path(space)
    for steps in range(len(moves)):
        network = network_after(space, moves[:steps])
        if listed_us(space, network) <= space.allowed_us and not all(choice.is_dense for choice in network.values()):
            return steps
    return len(moves)


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


class StepSampler(optuna.samplers.BaseSampler):
    """Halves the range between the most steps that were feasible and the fewest beyond that were not.

    A trial that was not trained to its end, and does not exceed the limit, was too slow: that asks for more steps, as
    a feasible one does. Asked when a trial draws: `fewest`, the steps to begin with where not accuracy but latency has
    a limit. It is known before any training, so all that is left is to go on where a network turns out slower.
    """

    def __init__(self, fewest: Callable[[], int | None]) -> None:
        self._fewest = fewest

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
        exceeding: list[int] = [past.params[STEPS] for past in others if past.state.is_finished() and _exceeds(past)]
        if (fewest := self._fewest()) is not None:
            return min(max([fewest, *(steps + 1 for steps in exceeding)]), param_distribution.high)
        good, slow = (
            [past.params[STEPS] for past in others if past.state == state and not _exceeds(past)]
            for state in (TrialState.COMPLETE, TrialState.PRUNED)
        )
        low = max(good, default=0)
        high = min((steps for steps in exceeding if steps > low), default=param_distribution.high + 1)
        low = max([low, *(steps for steps in slow if steps < high)])
        pending = [past.params[STEPS] for past in others if past.state == TrialState.RUNNING]
        marks = sorted({low, high, *(steps for steps in pending if low < steps < high)})
        start, end = max(pairwise(marks), key=lambda part: part[1] - part[0])
        return int((start + end) // 2)  # no step left: `low` again, which is not trained


def _exceeds(trial: FrozenTrial) -> bool:
    return any(value > 0 for value in trial.constraints.values())


def _gain(layer: LayerSpace, before: int, after: int) -> float:
    """Latency gained for what is lost."""
    gained = layer.latencies_us[before] - layer.latencies_us[after]
    if layer.lost is None:
        rows, cols = layer.layer.op.matrix_shape
        lost = (layer.choices[after].sparsity - layer.choices[before].sparsity) * rows * cols
    else:
        lost = layer.lost[after] - layer.lost[before]
    return gained / lost if lost > 0 else float("inf")
