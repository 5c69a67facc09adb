"""What the trials say beyond the best one: their front, what training bought, what more speed would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pruneaug.report.data import Data, chosen_trial, is_number, max_accuracy_loss, rows, section
from pruneaug.report.front import Point, Reference, Step, covered_over_epochs, pareto_front
from pruneaug.tasks.chance import undertrained

FASTER_BY = 0.10
"""The share of the chosen network's latency whose price in accuracy is estimated."""
_LEAST_REFERENCE_LOSS = 0.05


def analysis(data: Data) -> dict[str, Any]:
    """The figures of this module as JSON values, for report.json; the keys are listed in docs/formats.md."""
    reference = reference_of([data])
    return {
        "front": [point.trial for point in trial_front(data)],
        "hypervolume": None
        if reference is None
        else {
            "reference": {"latency_ms": reference.latency_ms, "accuracy_loss": reference.loss},
            "steps": [[step.epochs, step.covered, step.trial] for step in training_steps(data, reference)],
        },
        "faster": faster_cost(data),
    }


def judged_points(data: Data) -> list[Point]:
    """The trials that were trained to their end, as points."""
    return [point for trial in rows(data, "trials") if (point := _point(trial)) is not None]


def trial_front(data: Data) -> list[Point]:
    """The trials that no other beats in both latency and accuracy, fastest first."""
    return pareto_front(judged_points(data))


def reference_of(runs: Sequence[Data]) -> Reference | None:
    """One corner for all runs: the slowest dense prediction, and five times the allowed loss, at least 5 points.

    None where no run knows its dense latency.
    """
    dense = [section(data, "dense").get("latency_ms_predicted") for data in runs]
    latencies = [value for value in dense if is_number(value) and value > 0]
    losses = [5 * (max_accuracy_loss(data) or 0.0) for data in runs]
    return Reference(max(latencies), max([_LEAST_REFERENCE_LOSS, *losses])) if latencies else None


def training_steps(data: Data, reference: Reference) -> list[Step]:
    """What the trials cover after each, in the order of their numbers, by epochs of training."""
    trials = sorted(rows(data, "trials"), key=lambda trial: trial.get("number") or 0)
    costs = [
        (epochs if is_number(epochs := trial.get("epochs")) else 0.0, _point(trial), int(trial.get("number") or 0))
        for trial in trials
    ]
    return covered_over_epochs(costs, reference)


def faster_cost(data: Data) -> dict[str, Any] | None:
    """What a network faster by FASTER_BY than the chosen one would lose, by the front of the trials.

    A network that takes at most the target's time loses no less than the next slower trial of the front and no more
    than the next faster one did: `low` and `high`. `estimate` lies on the line between them. Where no faster trial was
    trained, `high` and `estimate` are None. `error` is one standard error of the dense network's validation accuracy.
    All are losses against dense after a trial's short fine-tuning, as fractions. None where no trial was chosen.
    """
    chosen = _point(chosen_trial(data))
    if chosen is None:
        return None
    front, target = trial_front(data), (1 - FASTER_BY) * chosen.latency_ms
    slower = min((point for point in [*front, chosen] if point.latency_ms > target), default=chosen)
    faster = max((point for point in front if point.latency_ms <= target), default=None)
    estimate = None
    if faster is not None:
        share = (slower.latency_ms - target) / (slower.latency_ms - faster.latency_ms)
        estimate = slower.loss + share * (faster.loss - slower.loss)
    return {
        "from_ms": chosen.latency_ms,
        "to_ms": target,
        "loss_now": chosen.loss,
        "low": slower.loss,
        "low_trial": slower.trial,
        "estimate": estimate,
        "high": None if faster is None else faster.loss,
        "high_trial": None if faster is None else faster.trial,
        "error": _standard_error(data, "dense"),
    }


def gain_noise(data: Data) -> float | None:
    """What the difference of the two validation accuracies scatters by, as a fraction; None where it is not known.

    One standard error, sqrt(p (1 - p) / n + q (1 - q) / n), or the spread over seeds if that is more.
    """
    dense, best = _standard_error(data, "dense"), _standard_error(data, "best")
    spread = section(section(data, "best"), "repeats").get("spread")
    both = None if dense is None or best is None else math.hypot(dense, best)
    return max((value for value in (both, spread) if is_number(value)), default=None)


def dense_caution(data: Data) -> str | None:
    """A warning if the dense network is hardly better than guessing; None if it is, or if that is not known."""
    dense = section(data, "dense")
    accuracy, chance = dense.get("accuracy_validation"), dense.get("accuracy_chance")
    return undertrained(accuracy, chance) if is_number(accuracy) and is_number(chance) else None


def _standard_error(data: Data, key: str) -> float | None:
    """Of the validation accuracy of the `dense` or the `best` network, as a fraction; None where it is not known."""
    accuracy, examples = section(data, key).get("accuracy_validation"), data.get("validation_examples")
    if not is_number(accuracy) or not is_number(examples) or examples < 1:
        return None
    return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / examples)


def _point(trial: Data) -> Point | None:
    latency, loss = trial.get("latency_ms_predicted"), trial.get("accuracy_loss")
    if trial.get("state") != "complete" or not is_number(latency) or not is_number(loss):
        return None
    return Point(latency, loss, int(trial.get("number") or 0))
