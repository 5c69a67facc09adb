"""`rule`: one assignment by a rule, without a search."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from pruneaug.errors import SpecError
from pruneaug.searcher.limits import listed_us, settle
from pruneaug.searcher.space import LayerSpace, SearchSpace
from pruneaug.sparsity.patterns import DENSE, NM, Assignment, LayerChoice, Pattern

APPLY, STOP = "apply", "stop"
_LATENCY = 0.5


class Rule:
    """Each layer gets the block that is fastest at equal saliency; one trial is trained.

    What a layer may lose is what its smallest block loses at one sparsity, the same for all layers: `sparsity`, or the
    lowest that takes at most `latency`, a fraction of the dense network's latency. Every block may then be as sparse as
    it can without losing more. Without either, the latency is the limit of the search, or 0.5 where it has none.
    """

    def __init__(self, latency: float | None = None, sparsity: float | None = None) -> None:
        told = {name: value for name, value in (("latency", latency), ("sparsity", sparsity)) if value is not None}
        for name, value in told.items():
            if len(told) > 1 or isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise SpecError(
                    "search.options of `rule` must be one of `latency` and `sparsity`, a fraction in (0, 1], but got "
                    f"{name} {value!r}"
                )
        self._latency, self._sparsity = latency, sparsity

    def propose(self, trial: optuna.Trial, space: SearchSpace) -> Assignment:
        # Later trials are dense, which is never trained: there is nothing left to try.
        if trial.suggest_categorical("rule", [APPLY, STOP]) == STOP:
            return settle(space, {})
        if self._sparsity is not None:
            return best_blocks(space, self._sparsity)
        if self._latency is None and space.max_latency_us is not None:
            return _within(space, space.allowed_us, "the latency limit of the search")
        return _within(space, (self._latency or _LATENCY) * space.dense_us, "search.options.latency")

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return _Once()


def best_blocks(space: SearchSpace, sparsity: float) -> dict[str, LayerChoice]:
    """The fastest choice of each layer that loses at most what its smallest block loses at the sparsity."""
    return settle(space, {layer.name: _best(layer, sparsity) for layer in space.layers})


def _within(space: SearchSpace, most_us: float, name: str) -> Assignment:
    """`best_blocks` at the lowest sparsity that takes at most `most_us`. Raises SpecError, which calls it `name`."""
    sparsities = sorted({choice.sparsity for layer in space.layers for choice in layer.choices})
    least_us = space.dense_us
    for sparsity in sparsities:
        assignment = best_blocks(space, sparsity)
        least_us = min(least_us, listed_us(space, assignment))
        if least_us <= most_us:
            return assignment
    raise SpecError(
        f"{name} must be reachable, but {most_us / space.dense_us:.3g} of the dense network's {space.dense_us:.6g} us "
        f"is asked and the rule reaches {least_us / space.dense_us:.3g}; raise it, or allow higher sparsities"
    )


def _best(layer: LayerSpace, sparsity: float) -> LayerChoice:
    if not layer.patterns:
        return layer.choices[0]
    losses = [choice.sparsity for choice in layer.choices] if layer.lost is None else layer.lost
    smallest = min(layer.patterns, key=_size)
    below = [at for at, each in enumerate(layer.choices) if each.pattern == smallest and each.sparsity <= sparsity]
    if not below:
        return DENSE
    most = max(losses[at] for at in below)
    allowed = [at for at in range(len(layer.choices)) if losses[at] <= most]
    return layer.choices[min(allowed, key=lambda at: (layer.latencies_us[at], losses[at]))]


def _size(pattern: Pattern) -> tuple[bool, int, Pattern]:
    """Blocks first: N:M has one sparsity only, and the rule needs a range of them."""
    return isinstance(pattern, NM), pattern.rows * pattern.cols, pattern


class _Once(optuna.samplers.BaseSampler):
    """`apply` in the first trial, `stop` in all others."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> str:
        tried = [past for past in study.get_trials(deepcopy=False) if past.params.get("rule") == APPLY]
        failed = [past for past in tried if past.state == optuna.trial.TrialState.FAIL]
        return APPLY if len(tried) == len(failed) else STOP
