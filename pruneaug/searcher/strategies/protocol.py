"""What a strategy is."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import optuna

from pruneaug.searcher.space import SearchSpace
from pruneaug.sparsity.patterns import Assignment


@runtime_checkable
class Strategy(Protocol):
    """Turns the parameters that Optuna proposes into an assignment.

    The parameters, their names and ranges must be the same in every trial: Optuna's samplers learn only from
    parameters that all trials share.

    A strategy with `directions = 2` gets a study that minimises both latency and accuracy loss, in this order; the
    study of others (`directions = 1`, or no such attribute) minimises what the objective asks.
    """

    def propose(self, trial: optuna.Trial, space: SearchSpace) -> Assignment:
        """The assignment of this trial: a pure function of what `trial.suggest_*` returns."""
        ...

    def sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """A sampler without memory of its own.

        Every trial gets a new one with its own seed, so that a search that was killed goes on as if it had not been.
        """
        ...


@runtime_checkable
class LimitedStrategy(Protocol):
    """A strategy with limits of its own: whether they can be met shows before anything is trained."""

    def least_us(self, space: SearchSpace) -> float:
        """The least latency in microseconds that it can propose, of a space that may not be scored yet.

        Raises SpecError if its limits cannot be met.
        """
        ...
