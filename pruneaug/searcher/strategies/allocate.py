"""`allocate`: Optuna proposes a latency and how sensitive layers are, the allocation makes the assignment of it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import optuna

from pruneaug.errors import SpecError
from pruneaug.network.ops import Conv2dOp
from pruneaug.searcher import decoding
from pruneaug.searcher.allocation import Limit
from pruneaug.searcher.choosing import Array
from pruneaug.searcher.domination import worthwhile
from pruneaug.searcher.space import LayerSpace, Objective, SearchSpace
from pruneaug.searcher.strategies.budget_sampler import BudgetSampler
from pruneaug.sparsity.patterns import Assignment, LayerChoice

BUDGET, POWER, BLOCK = "budget", "power", "block"
_SPREAD = 1.5  # a coefficient of 1 makes the most sensitive layers e^3 times as sensitive as the least
_POWER = 2.0
_BLOCK = 0.25


class Allocate:
    """The assignment that loses least saliency within a latency, exactly; what Optuna searches is the latency, and what
    saliency does not know.

    Parameters, in every trial: `budget` in [0, 1], the latency between the least possible one (0) and dense, or the
    limit (1), on a logarithmic scale; and coefficients in [-1, 1], of which 0 leaves the saliency as it is. A layer's
    losses are multiplied by the exponential of the sum of coefficient times feature. The features are those that the
    space's layers differ in: `depth` (position), `weights` (their number, log), `pointwise` (kernel 1x1 against larger
    ones). `power` is an exponent of what a choice loses: above 0, losses are spread over more layers. `block`
    multiplies losses by a power of the block's size: above 0, small blocks are favoured.

    `parameters`, `operations`: limits beside the latency, as fractions of the dense layers' (1: no limit).
    """

    def __init__(self, parameters: float = 1.0, operations: float = 1.0) -> None:
        self._fractions = _fraction("parameters", parameters), _fraction("operations", operations)
        self._space: SearchSpace | None = None

    def propose(self, trial: optuna.Trial, space: SearchSpace) -> Assignment:
        self._space = space  # the sampler draws at the first `suggest`
        space = _worthwhile(space)
        budget = trial.suggest_float(BUDGET, 0.0, 1.0)
        names = (*layer_features(space), POWER, BLOCK)
        coefficients = {name: trial.suggest_float(name, -1.0, 1.0) for name in names}
        return dict(_decoded(space, self._fractions, tuple({BUDGET: budget, **coefficients}.items())))

    def least_us(self, space: SearchSpace) -> float:
        """The least latency within its limits. Raises SpecError if they cannot be met."""
        return _least_us(_worthwhile(space), *self._fractions)

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return BudgetSampler(seed, self._objective, self._identity, self._needed)

    def _objective(self) -> Objective:
        return "latency" if self._space is None else self._space.objective

    def _identity(self, params: Mapping[str, float]) -> Hashable:
        """Equal for parameters of the same assignment."""
        if self._space is None:
            return tuple(params.items())
        return frozenset(_decoded(_worthwhile(self._space), self._fractions, tuple(params.items())).items())

    def _needed(self, params: Mapping[str, float]) -> float:
        """The budget of the latency that the parameters' assignment takes."""
        if self._space is None:
            return params[BUDGET]
        space = _worthwhile(self._space)
        taken_us = decoding.latency_us(space, _decoded(space, self._fractions, tuple(params.items())))
        least_us = _least_us(space, *self._fractions)
        most_us = _most_us(least_us, space)
        if not least_us < taken_us < most_us:
            return 0.0 if taken_us <= least_us else 1.0
        return math.log(taken_us / least_us) / math.log(most_us / least_us)


def budget_us(budget: float, least_us: float, space: SearchSpace) -> float:
    """The latency of a budget in [0, 1]: from the least possible one to dense or the limit, on a logarithmic scale."""
    return float(least_us * (_most_us(least_us, space) / least_us) ** budget)


def _most_us(least_us: float, space: SearchSpace) -> float:
    return max(min(space.dense_us, space.allowed_us), least_us)


def layer_features(space: SearchSpace) -> dict[str, Array]:
    """What may make layers differ in sensitivity, [layers] each, in [-1, 1]; only what differs over the layers."""
    layers = [layer.layer for layer in space.layers]
    pointwise = [isinstance(layer.op, Conv2dOp) and layer.op.kernel == (1, 1) for layer in layers]
    features = {
        "depth": np.arange(len(layers), dtype=float),
        "weights": np.log([math.prod(layer.op.matrix_shape) for layer in layers]),
        "pointwise": np.array(pointwise, dtype=float),
    }
    return {name: _centred(values) for name, values in features.items() if np.ptp(values) > 0}


def sensitivities(space: SearchSpace, features: Mapping[str, Array], coefficients: Mapping[str, float]) -> list[Array]:
    """What each choice is taken to lose, an array [choices] per layer."""
    exponents = sum((coefficients[name] * values for name, values in features.items()), np.zeros(len(space.layers)))
    power = _POWER ** coefficients[POWER]
    return [
        np.exp(_SPREAD * exponent) * lost**power * _areas(layer) ** (_BLOCK * coefficients[BLOCK])
        for exponent, lost, layer in zip(exponents, decoding.layer_losses(space), space.layers, strict=True)
    ]


@lru_cache(maxsize=1024)
def _decoded(
    space: SearchSpace, fractions: tuple[float, float], params: tuple[tuple[str, float], ...]
) -> dict[str, LayerChoice]:
    values = dict(params)
    most_us = budget_us(values[BUDGET], _least_us(space, *fractions), space)
    limits = [decoding.latency_limit(space, most_us), *_limits(space, *fractions)]
    return decoding.least_lost(space, limits, sensitivities(space, layer_features(space), values))


def _limits(space: SearchSpace, parameters: float, operations: float) -> list[Limit]:
    """The limits beside the latency."""
    layers = [layer.layer for layer in space.layers]
    weights = sum(math.prod(layer.op.matrix_shape) for layer in layers)
    macs = sum(layer.op.macs * layer.calls for layer in layers)
    wanted = [] if parameters == 1.0 else [decoding.parameter_limit(space, parameters * weights)]
    return wanted if operations == 1.0 else [*wanted, decoding.operation_limit(space, operations * macs)]


_worthwhile = lru_cache(maxsize=4)(worthwhile)


@lru_cache(maxsize=4)
def _least_us(space: SearchSpace, parameters: float, operations: float) -> float:
    """The least latency within the other limits. Raises SpecError if they cannot be met."""
    return decoding.least_us(space, _limits(space, parameters, operations))


def _areas(layer: LayerSpace) -> Array:
    return np.array([1.0 if each.pattern is None else each.pattern.rows * each.pattern.cols for each in layer.choices])


def _centred(values: Array) -> Array:
    """Scaled to [-1, 1]."""
    scaled: Array = 2 * (values - values.min()) / np.ptp(values) - 1
    return scaled


def _fraction(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise SpecError(f"search.options.{name} must be a fraction in (0, 1], but got {value!r}")
    return float(value)
