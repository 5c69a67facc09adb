"""A sampler that knows what a budget is: a proposal's latency is known before any training, its accuracy is not."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import norm

from pruneaug.searcher.space import Objective
from pruneaug.searcher.strategies.gaussian import Array, Prior

BUDGET = "budget"
FIRST_BUDGET = 0.5
_POINT = 0.01  # accuracies matter in points: losses beyond some points are all alike
_CANDIDATES = 3000
_TRIES = 60


class BudgetSampler(optuna.samplers.BaseSampler):
    """Draws a budget in [0, 1] and coefficients in [-1, 1], of which 0 is the best guess.

    A Gaussian process tells how likely a proposal keeps the accuracy limit: less likely the smaller its budget, as the
    prior knows. Of the budgets below the best feasible one, that is drawn which may be expected to gain most: the gain
    times the probability to be feasible. Objective `accuracy` always takes the whole budget and `front` any, and draw
    the coefficients that may be expected to lose least. The first trial has coefficients 0.

    Asked when a trial draws: `objective`; of a trial's parameters `identity`, equal if they mean the same assignment,
    and `needed`, the budget of that assignment's latency. It may be far less than was given: where weights are zero
    already, removing them loses nothing, and a larger budget buys nothing.
    """

    def __init__(
        self,
        seed: int,
        objective: Callable[[], Objective],
        identity: Callable[[Mapping[str, float]], Hashable],
        needed: Callable[[Mapping[str, float]], float],
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._objective = objective
        self._identity = identity
        self._needed = needed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        known: list[dict[str, BaseDistribution]] = [past.distributions for past in study.get_trials(deepcopy=False)]
        whole = max((each for each in known if BUDGET in each), key=len, default={})  # one being asked may lack some
        return dict(whole)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if BUDGET not in search_space:
            return {}
        names = list(search_space)
        trials = [past for past in study.get_trials(deepcopy=False) if past.number != trial.number]
        point = self._draw(names, [past for past in trials if set(names) <= past.params.keys()])
        return dict(zip(names, (float(value) for value in point), strict=True))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        assert isinstance(param_distribution, FloatDistribution)
        if param_name != BUDGET:
            return 0.0
        if self._objective() == "accuracy":
            return 1.0
        return float(FIRST_BUDGET + 0.02 * self._rng.uniform(-1, 1))

    def _draw(self, names: list[str], trials: list[FrozenTrial]) -> Array:
        objective = self._objective()
        x, y = self._observations(names, trials, objective)
        feasible = [self._needed(past.params) for past in trials if _is_feasible(past)]
        best = min(feasible, default=1.0) if objective == "latency" else 1.0
        candidates = self._candidates(names, x, y, best)
        budgets = candidates[:, names.index(BUDGET)]
        if objective == "accuracy":
            budgets[:] = 1.0  # the limit: nothing is gained below it
        elif objective == "front":
            budgets[:] = self._rng.random()
        prior = fit(names, x, y)
        pending = [self._point(names, past) for past in trials if past.state == TrialState.RUNNING]
        if pending:
            believed, _ = prior.posterior(x, y, np.array(pending))
            x, y = np.concatenate([x, pending]), np.concatenate([y, believed])
        mean, std = prior.posterior(x, y, candidates)
        if objective == "latency":
            worth = (best - budgets) * norm.cdf(-mean / np.hypot(std, prior.noise))
        else:
            lowest = prior.posterior(x, y, x)[0].min() if objective == "accuracy" and len(x) else mean.min()
            below = (lowest - mean) / std
            worth = std * (below * norm.cdf(below) + norm.pdf(below))  # expected improvement
        return self._first_new(names, candidates[np.argsort(-worth, kind="stable")], trials)

    def _observations(self, names: list[str], trials: list[FrozenTrial], objective: Objective) -> tuple[Array, Array]:
        """Parameters [points, dims] and losses, or by how much they exceed the limit, squeezed [points]."""
        points, losses = [], []
        for past in trials:
            if objective == "accuracy":
                loss = past.value if past.state == TrialState.COMPLETE else None
            else:
                loss = past.constraints.get("accuracy_loss") if past.state.is_finished() else None
            if loss is not None:
                points.append(self._point(names, past))
                losses.append(loss)
        return np.array(points).reshape(-1, len(names)), np.arcsinh(np.array(losses) / _POINT)

    def _point(self, names: list[str], past: FrozenTrial) -> list[float]:
        """A trial's parameters, with the budget that it needed."""
        return [self._needed(past.params) if name == BUDGET else past.params[name] for name in names]

    def _first_new(self, names: list[str], ranked: Array, trials: list[FrozenTrial]) -> Array:
        """The best candidate that gives another assignment than all trials, of some; the best of all if none does.

        The best ones are alike, and of a few layers may all give one assignment: so the further down, the wider apart
        are those that are looked at.
        """
        tried = {self._identity({name: past.params[name] for name in names}) for past in trials}
        places = np.unique(np.geomspace(1, len(ranked), _TRIES).astype(int)) - 1
        points: list[Array] = list(ranked[places])
        for point in points:
            if self._identity(dict(zip(names, map(float, point), strict=True))) not in tried:
                return point
        return points[0]

    def _candidates(self, names: list[str], x: Array, y: Array, best: float) -> Array:
        """[candidates, dims]."""
        dims = len(names)
        spread = self._rng.choice([0.0, 0.1, 0.3, 0.6], size=(_CANDIDATES, 1))
        centres = np.zeros((_CANDIDATES, dims))
        if len(x):
            order = np.argsort(y - 4 * (1 - x[:, names.index(BUDGET)]))  # the promising ones, whatever their budget
            good = x[order[: max(1, len(x) // 4)]]
            near = self._rng.random(_CANDIDATES) < 0.6
            centres[near] = good[self._rng.integers(len(good), size=int(near.sum()))]
        points = np.clip(centres + spread * self._rng.normal(size=(_CANDIDATES, dims)), -1.0, 1.0)
        points[:, names.index(BUDGET)] = best * self._rng.random(_CANDIDATES)
        return points


def fit(names: list[str], x: Array, y: Array) -> Prior:
    """The prior that explains the observations best, of a few."""
    is_budget = np.array([name == BUDGET for name in names])
    base = Prior(
        mean=3.0,
        slopes=np.where(is_budget, -5.0, 0.0),
        bends=np.where(is_budget, 0.0, 0.3),
        mean_std=1.5,
        slope_stds=np.where(is_budget, 2.0, 0.3),
        scale=1.0,
        lengths=np.where(is_budget, 0.4, 1.5),
        noise=0.3,
    )
    if len(x) < 3:
        return base
    choices = [replace(base, scale=scale, noise=noise) for scale in (0.3, 0.6, 1.0, 1.5) for noise in (0.1, 0.2, 0.4)]
    return max(choices, key=lambda prior: prior.evidence(x, y))


def _is_feasible(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())
