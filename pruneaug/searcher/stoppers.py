"""Stoppers: which trials end at a rung, before their time. (Optuna calls these pruners.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna

from pruneaug.errors import SpecError
from pruneaug.registry import Registry
from pruneaug.searcher.trial import TrialRecord
from pruneaug.searcher.work import RungScore

STOPPERS = Registry(
    "stoppers",
    {
        "none": "pruneaug.searcher.stoppers:Never",
        "median": "pruneaug.searcher.stoppers:median_stopper",
        "asha": "pruneaug.searcher.stoppers:asha_stopper",
        "recovery": "pruneaug.searcher.stoppers:Recovery",
    },
)


@dataclass(frozen=True, slots=True)
class AtRung:
    """A trial that waits at a rung: its rungs so far, and what it must reach to win.

    loss: dense minus its accuracy at the last rung. loss_to_beat: the largest final loss with which it could still win.
    finished: the records so far. study, trial: Optuna's, where the rungs so far are reported at steps 1, 2, ...
    """

    rungs: tuple[RungScore, ...]
    loss: float
    loss_to_beat: float
    finished: Sequence[TrialRecord]
    study: optuna.Study
    trial: optuna.Trial


class Stopper(Protocol):
    """Decides at each rung of a trial. Its answer depends on nothing but what it is shown."""

    def stops(self, at: AtRung) -> bool:
        """Whether the trial ends here."""
        ...


class Never:
    """`none`: every trial is trained to its end."""

    def stops(self, at: AtRung) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class OptunaStopper:
    """One of Optuna's pruners, on what a trial exceeds the allowed loss by (0 if it keeps it)."""

    pruner: optuna.pruners.BasePruner

    def stops(self, at: AtRung) -> bool:
        at.study.pruner = self.pruner
        return at.trial.should_prune()


def median_stopper(startup_trials: int = 5) -> OptunaStopper:
    """`median`: ends a trial that is worse than the median of the finished ones at the same rung.

    `startup_trials`: none is ended before so many have finished.
    """
    return OptunaStopper(optuna.pruners.MedianPruner(n_startup_trials=startup_trials))


def asha_stopper(keep: int = 2) -> OptunaStopper:
    """`asha`: of the trials that reach a rung, one of `keep` goes on (asynchronous successive halving)."""
    # Rungs are reported at steps 1, 2, ...; Optuna's own are at powers of its factor, so Staircase renumbers them.
    return OptunaStopper(Staircase(keep))


class Staircase(optuna.pruners.BasePruner):
    """Asynchronous successive halving with one rung at each step that is reported."""

    def __init__(self, keep: int) -> None:
        if not isinstance(keep, int) or keep < 2:
            raise SpecError(f"search.stopper.options.keep must be a whole number from 2 on, but got {keep!r}")
        self._keep = keep

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        step = trial.last_step
        if step is None:
            return False
        others = [item.intermediate_values for item in study.get_trials(deepcopy=False) if item.number != trial.number]
        value, values = trial.intermediate_values[step], [seen[step] for seen in others if step in seen]
        # The first to come to a rung go on, or nothing would ever be finished.
        allowed = sorted([*values, value])[max(1, (len(values) + 1) // self._keep) - 1]
        return value > allowed


class Recovery:
    """`recovery`: ends a trial that cannot win even if it recovers as much as any finished one did from that rung on.

    `margin`: accuracy granted beyond that, as a fraction; `startup_trials`: none is ended before so many have finished.
    """

    def __init__(self, margin: float = 0.005, startup_trials: int = 3) -> None:
        if not 0 <= margin <= 1 or startup_trials < 1:
            raise SpecError(
                f"search.stopper.options need 0 <= margin <= 1 and startup_trials >= 1, but got margin={margin!r} and "
                f"startup_trials={startup_trials!r}"
            )
        self._margin, self._startup = margin, startup_trials

    def stops(self, at: AtRung) -> bool:
        epochs, _ = at.rungs[-1]
        recovered = [gain for record in at.finished if (gain := recovery(record, epochs)) is not None]
        if len(recovered) < self._startup:
            return False
        return at.loss - max(recovered) - self._margin > at.loss_to_beat


def recovery(record: TrialRecord, epochs: float) -> float | None:
    """The accuracy that a finished trial gained from its rung at `epochs` to its end; None if it has no such rung."""
    if record.state != "complete" or record.accuracy_validation is None:
        return None
    at = [accuracy for reached, accuracy in record.rungs if abs(reached - epochs) < 1e-9]
    return record.accuracy_validation - at[0] if at else None


def make_stopper(name: str, options: dict[str, Any]) -> Stopper:
    """A stopper by name; one of Optuna's pruners will do too. Raises PluginError or SpecError."""
    made: Stopper | optuna.pruners.BasePruner = STOPPERS.create(name, options)
    return OptunaStopper(made) if isinstance(made, optuna.pruners.BasePruner) else made
