"""The end of a search: the long fine-tuning of the best network, and the two readings of the test data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pruneaug.errors import RunError
from pruneaug.finetune.protocol import Progress
from pruneaug.network.layers import apply_masks
from pruneaug.pruners.protocol import Masks
from pruneaug.searcher.candidate import Candidate, Evaluator, finite_accuracy
from pruneaug.searcher.dense import load_dense
from pruneaug.searcher.rundir import RunDir, read_json, write_json
from pruneaug.searcher.trial import TrialRecord, best_trial, is_over, read_records
from pruneaug.searcher.weights import load_tensors, load_weights, save_tensors
from pruneaug.spec.models import SearchSpec
from pruneaug.tasks.protocol import Task

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BestNetwork:
    """The network that a search ends with: on the CPU, in eval mode, its masks, the trial it comes from.

    accuracy_validation: after the long fine-tuning, or the trial's if that did not help.
    """

    model: nn.Module
    masks: Masks
    trial: TrialRecord
    accuracy_validation: float


@dataclass(frozen=True, slots=True)
class FinalScores:
    """Test accuracies, in [0, 1]; `best` is None if no trial was feasible."""

    dense: float
    best: float | None


def refine_best(
    run: RunDir, best: TrialRecord, evaluator: Evaluator, *, seed: int, progress: Progress | None = None
) -> float:
    """Fine-tune the best trial's network for longer, store the better of the two, and return its validation accuracy.

    It is done once per trial. A fine-tuning that fails leaves the trial's network as it is.
    """
    record = run.best / "record.json"
    if record.exists() and read_json(record).get("number") == best.number:
        return float(read_json(record)["accuracy_validation"])
    record.unlink(missing_ok=True)  # the weights beside it are about to change
    chosen, error = _refined(run, best, evaluator, seed, progress)
    save_tensors(run.best / "model.safetensors", chosen.weights)
    save_tensors(run.best / "masks.safetensors", chosen.masks)
    facts = {"number": best.number, "accuracy_validation": chosen.accuracy, "epochs": chosen.epochs, "error": error}
    write_json(record, facts)
    return chosen.accuracy


def load_best(task: Task, run: RunDir) -> BestNetwork | None:
    """The network that the search ended with; None if no trial was feasible or the search has not ended."""
    path = run.best / "record.json"
    if not path.exists():
        return None
    record = read_json(path)
    trial = read_records(run.trials).get(record["number"])
    if trial is None:
        raise RunError(
            f"{path} must name a trial of this run, but there is no {run.trials / str(record['number'])}.json; "
            f"delete {path} and run again"
        )
    model = task.build_model()
    load_weights(model, run.best / "model.safetensors")
    masks = load_tensors(run.best / "masks.safetensors")
    apply_masks(model, masks)
    return BestNetwork(model.eval(), masks, trial, float(record["accuracy_validation"]))


def finished_trials(run: RunDir, search: SearchSpec, dense_us: float) -> dict[int, TrialRecord]:
    """The trials of a search that has ended, by number; `dense_us` is the dense network's predicted latency.

    Raises RunError if it was not begun or has not ended.
    """
    records = read_records(run.trials)
    if not (run.dense / "record.json").exists() or not is_over(records, search.trials, search.timeout_s):
        end_here = f", or end it here with `--set search.trials={len(records)}`" if records else ""
        raise RunError(
            f"this needs a finished search, but {run.path} has {len(records)} of {search.trials} trials; "
            f"go on with `pruneaug search JOB`{end_here}"
        )
    best, path = best_trial(records, dense_us), run.best / "record.json"
    if best is not None and not (path.exists() and read_json(path).get("number") == best.number):
        raise RunError(
            f"this needs a finished search, but the final fine-tuning of trial {best.number} in {run.path} is missing; "
            "run `pruneaug search JOB` again"
        )
    return records


def finalize(task: Task, run: RunDir, *, device: str = "cpu") -> FinalScores:
    """Read the test data: once for the dense network and once for the best one, however often this is called.

    Call it when the search has ended, with the run's lock held; more trials later may bring another best network, which
    is then read once too.
    """
    scores: dict[str, Any] = read_json(run.final) if run.final.exists() else {}

    def once(name: str, number: int | None, network: Callable[[], nn.Module]) -> float:
        known: Mapping[str, Any] | None = scores.get(name)
        if known is None or known["number"] != number:
            model = network().to(device)
            accuracy = finite_accuracy(task.evaluate(model, "test"))
            scores[name] = {"number": number, "accuracy_test": accuracy}
            write_json(run.final, scores)
        return float(scores[name]["accuracy_test"])

    dense = once("dense", None, lambda: load_dense(task, run))
    best = load_best(task, run)
    return FinalScores(dense, None if best is None else once("best", best.trial.number, lambda: best.model))


def _refined(
    run: RunDir, best: TrialRecord, evaluator: Evaluator, seed: int, progress: Progress | None
) -> tuple[Candidate, str | None]:
    """The better of the trial's network and the longer fine-tuned one, and what went wrong."""
    folder = run.trial_weights(best.number)
    weights, masks = load_tensors(folder / "model.safetensors"), load_tensors(folder / "masks.safetensors")
    assert best.accuracy_validation is not None
    kept = Candidate(weights, masks, best.accuracy_validation, 0.0)
    try:
        refined = evaluator.refine(weights, masks, seed=seed, progress=progress)
        finite_accuracy(refined.accuracy)
    except Exception as error:  # the trial's network is there and feasible: no error may lose it
        _log.warning("the final fine-tuning failed; the trial's network is kept", exc_info=True)
        return kept, f"{type(error).__name__}: {error}"
    return (refined, None) if refined.accuracy >= kept.accuracy else (kept, None)
