"""What a search leaves: its best network, and the two readings of the test data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pruneaug.errors import RunError
from pruneaug.network.layers import apply_masks
from pruneaug.pruners.protocol import Masks
from pruneaug.searcher.candidate import finite_accuracy
from pruneaug.searcher.dense import load_dense
from pruneaug.searcher.objective import make_goal
from pruneaug.searcher.rundir import RunDir, read_json, write_json
from pruneaug.searcher.trial import TrialRecord, is_over, read_records
from pruneaug.searcher.weights import MASKS, MODEL, load_tensors, load_weights, weights_digest
from pruneaug.spec.models import SearchSpec
from pruneaug.tasks.protocol import Task


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
    load_weights(model, run.best / MODEL)
    masks = load_tensors(run.best / MASKS)
    apply_masks(model, masks)
    return BestNetwork(model.eval(), masks, trial, float(record["accuracy_validation"]))


def finished_trials(run: RunDir, search: SearchSpec, dense_us: float) -> dict[int, TrialRecord]:
    """The trials of a search that has ended, by number; `dense_us` is the dense network's predicted latency.

    Raises RunError if it was not begun or has not ended.
    """
    records, dense = read_records(run.trials), run.dense / "record.json"
    if not dense.exists() or not is_over(records, search.trials, search.timeout_s):
        end_here = f", or end it here with `--set search.trials={len(records)}`" if records else ""
        raise RunError(
            f"this needs a finished search, but {run.path} has {len(records)} of {search.trials} trials; "
            f"go on with `pruneaug search JOB`{end_here}"
        )
    best = make_goal(search, dense_us, float(read_json(dense)["accuracy_validation"])).best(records)
    if best is not None and best.number not in finalists_of(run):
        raise RunError(
            f"this needs a finished search, but the final fine-tuning of trial {best.number} in {run.path} is missing; "
            "run `pruneaug search JOB` again"
        )
    return records


def finalists_of(run: RunDir) -> list[int]:
    """The trials that got the final fine-tuning when the search ended; none if it has not ended."""
    path = run.best / "record.json"
    if not path.exists():
        return []
    record = read_json(path)
    return [int(item["number"]) for item in record.get("finalists", [record])]


def finalize(task: Task, run: RunDir, *, device: str = "cpu") -> FinalScores:
    """Read the test data: once for the dense network and once for the best one, however often this is called.

    Call it when the search has ended, with the run's lock held; more trials or finalists later may bring another best
    network, of the same trial too, which is then read once as well.
    """
    scores: dict[str, Any] = read_json(run.final) if run.final.exists() else {}

    def once(name: str, identity: Mapping[str, Any], network: Callable[[], nn.Module]) -> float:
        known: Mapping[str, Any] = scores.get(name, {})
        if any(known.get(key, ...) != value for key, value in identity.items()):
            model = network().to(device)
            accuracy = finite_accuracy(task.evaluate(model, "test"))
            scores[name] = {**identity, "accuracy_test": accuracy}
            write_json(run.final, scores)
        return float(scores[name]["accuracy_test"])

    dense = once("dense", {"number": None}, lambda: load_dense(task, run))
    best = load_best(task, run)
    if best is None:
        return FinalScores(dense, None)
    # A trial's network is another one after a long fine-tuning.
    identity = {"number": best.trial.number, "weights": weights_digest(run.best / MODEL)}
    return FinalScores(dense, once("best", identity, lambda: best.model))
