"""The tree-structured Parzen estimator, for strategies that learn."""

from __future__ import annotations

import optuna

from pruneaug.errors import SpecError


def checked_startup(trials: int) -> int:
    """Raises SpecError unless it is a number of trials."""
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 0:
        raise SpecError(f"search.options.startup_trials must be a whole number from 0 on, but got {trials!r}")
    return trials


def parzen_sampler(seed: int, startup_trials: int) -> optuna.samplers.BaseSampler:
    """A sampler that draws at random until `startup_trials` trials have finished."""
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup_trials)
