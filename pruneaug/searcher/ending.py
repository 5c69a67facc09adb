"""The end of a search: the long fine-tuning of the finalists, the constraint checked again, the winner repeated."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneaug.searcher import history
from pruneaug.searcher.driver import Driver
from pruneaug.searcher.origin import nearest
from pruneaug.searcher.rundir import read_json, write_json
from pruneaug.searcher.trial import TrialRecord
from pruneaug.searcher.weights import MASKS, MODEL, load_tensors, save_tensors
from pruneaug.searcher.work import Failed, Judged, TrialWork

_log = logging.getLogger(__name__)
_FINAL, _REPEAT = 2, 100  # purposes of seeds


@dataclass(frozen=True, slots=True)
class Winner:
    """The network that a search ends with: its trial, its validation accuracy, and those of its repeats."""

    trial: TrialRecord
    accuracy: float
    repeats: tuple[float, ...] = ()


def end_search(driver: Driver) -> Winner | None:
    """Fine-tune the finalists for longer, choose the winner, store it in best/, and make it again with other seeds.

    Each is done once; a search that was killed in it goes on. None if no trial keeps the constraint.
    """
    run = driver.run
    path = run.best / "record.json"
    known: dict[str, Any] = read_json(path) if path.exists() else {}
    finalists = _refine(driver)
    if not known or [item["number"] for item in known.get("finalists", [known])] != [f["number"] for f in finalists]:
        path.unlink(missing_ok=True)  # the weights beside it are about to change
        known = _choose(driver, finalists)
        if not known:
            return None
        write_json(path, known)
    winner = driver.records[known["number"]]
    source = next((f.get("inherited_from") for f in finalists if f["number"] == winner.number), None)
    repeats = _repeat(driver, winner, source, list(known.get("repeats", [])))
    if repeats != known.get("repeats", []):
        write_json(path, {**known, "repeats": repeats})
    accuracies = [item["accuracy_validation"] for item in repeats if item["accuracy_validation"] is not None]
    return Winner(winner, float(known["accuracy_validation"]), tuple(accuracies))


def _refine(driver: Driver) -> list[dict[str, Any]]:
    """What became of each finalist: the better of the trial's network and the longer fine-tuned one.

    As many at a time as there are workers: which trial is the next one, the last ones tell.
    """
    goal, count = driver.goal, driver.job.finetune.finalists
    done: list[dict[str, Any]] = []
    while finalists := goal.finalists(
        driver.records, count, {f["number"]: goal.dense_accuracy - f["accuracy_validation"] for f in done}
    ):
        works = [_final_work(driver, trial, done) for trial in finalists[: driver.executor.capacity]]
        for event in driver.do([work for work in works if not (work.folder / "record.json").exists()]):
            trial = driver.records[event.work.number]
            write_json(event.work.folder / "record.json", _finalist(trial, event))
            driver.run.drop_checkpoint(event.work.key)
        done += [read_json(work.folder / "record.json") for work in works]
    return done


def _finalist(trial: TrialRecord, event: Judged | Failed) -> dict[str, Any]:
    """A fine-tuning that fails or does not help leaves the trial's network as it is: no error may lose it."""
    source = event.work.inherit
    facts = {**_unrefined(trial), "inherited_from": None if source is None else int(source.name)}
    if isinstance(event, Failed):
        return {**facts, "error": event.error}
    facts["epochs"] = event.epochs  # also where they did not help: they were spent
    if event.accuracy < (trial.accuracy_validation or 0.0):
        return facts
    return {**facts, "accuracy_validation": event.accuracy, "refined": True}


def _unrefined(trial: TrialRecord) -> dict[str, Any]:
    accuracy = trial.accuracy_validation
    return {"number": trial.number, "accuracy_validation": accuracy, "epochs": 0.0, "refined": False, "error": None}


def _choose(driver: Driver, finalists: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of the finalists that keep the constraint, its network stored; empty if none does.

    Or a trial that keeps it as it is, where finalists that had still to win accuracy back did not.
    """
    run, goal = driver.run, driver.goal
    numbers = {facts["number"] for facts in finalists}
    others = [trial for trial in goal.wanted(driver.records, 1) if trial.number not in numbers]
    ranked = []
    for facts in [*finalists, *map(_unrefined, others)]:
        trial = driver.records[facts["number"]]
        loss = goal.dense_accuracy - facts["accuracy_validation"]
        facts["feasible"] = goal.ends_with(loss, trial)
        first, second = (loss, trial.latency_us) if goal.objective == "accuracy" else (trial.latency_us, loss)
        if facts["feasible"] and trial.latency_us < goal.dense_us:
            ranked.append((first, second, trial.number, facts))
    if not ranked:
        return {}
    *_, number, chosen = min(ranked, key=lambda item: item[:3])
    source = run.final_weights(number) if chosen["refined"] else run.trial_weights(number)
    for name in (MODEL, MASKS):
        save_tensors(run.best / name, load_tensors(source / name))
    public = [{key: value for key, value in facts.items() if key != "refined"} for facts in finalists]
    own = {key: chosen[key] for key in ("number", "accuracy_validation", "epochs", "error")}
    return {**own, "finalists": public, "repeats": []}


def _repeat(
    driver: Driver, winner: TrialRecord, source: int | None, done: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Make the winner again, pruned and fine-tuned with other seeds, as often as the job asks.

    From what it began with itself: `source` is the finalist whose weights its long fine-tuning began with.
    """
    todo = range(len(done), driver.job.finetune.repeats)
    pruned = dict(zip(todo, driver.do([_first_work(driver, winner, index) for index in todo]), strict=True))
    whole = [index for index in todo if isinstance(pruned[index], Judged)]
    refined = dict(zip(whole, driver.do([_second_work(driver, winner, source, index) for index in whole]), strict=True))
    for index in todo:
        event = pruned[index]
        error, accuracy = (event.error, None) if isinstance(event, Failed) else (None, event.accuracy)
        longer = refined.get(index)
        if accuracy is not None and isinstance(longer, Judged):
            accuracy = max(accuracy, longer.accuracy)  # as for the winner: the better of the two
        seed = _first_work(driver, winner, index).seed
        done = [*done, {"seed": seed, "accuracy_validation": accuracy, "error": error}]
        shutil.rmtree(driver.run.finals / f"repeat-{index}", ignore_errors=True)
        for key in _repeat_keys(winner, index):
            driver.run.drop_checkpoint(key)
    return done


def _final_work(driver: Driver, trial: TrialRecord, done: list[dict[str, Any]]) -> TrialWork:
    """The long fine-tuning of a trial's network; `done` are the finalists before it."""
    key = f"{trial.number}-final"
    refined = {facts["number"]: driver.records[facts["number"]].assignment for facts in done if facts["refined"]}
    source = nearest(trial.assignment, refined, driver.network) if driver.job.search.inherit else None
    return TrialWork(
        key=key,
        number=trial.number,
        assignment=trial.assignment,
        seed=history.trial_seed(driver.job.search.seed, trial.number, _FINAL),
        folder=driver.run.final_weights(trial.number),
        inherit=None if source is None else driver.run.final_weights(source),
        refine=driver.run.trial_weights(trial.number),
        checkpoint=driver.run.checkpoint(key) if driver.is_resumable else None,
        timeout_s=driver.job.search.final_timeout_s,
        store_from=trial.accuracy_validation or 0.0,
    )


def _first_work(driver: Driver, winner: TrialRecord, index: int) -> TrialWork:
    key, _ = _repeat_keys(winner, index)
    return TrialWork(
        key=key,
        number=winner.number,
        assignment=winner.assignment,
        seed=history.trial_seed(driver.job.search.seed, winner.number, _REPEAT + 2 * index),
        folder=driver.run.finals / f"repeat-{index}",
        inherit=_origin(driver, winner),
        checkpoint=driver.run.checkpoint(key) if driver.is_resumable else None,
        timeout_s=driver.job.search.trial_timeout_s,
    )


def _origin(driver: Driver, trial: TrialRecord) -> Path | None:
    """The folder of the weights that a trial began with; None for the dense ones."""
    run, source = driver.run, trial.inherited_from
    if source is None:
        return None
    folder = run.final_weights(source) if trial.inherited_refined else run.trial_weights(source)
    if (folder / MASKS).exists():
        return folder
    found = run.tuned_weights(source)
    _log.warning(
        "the weights that trial %d began with, %s, are gone: its repeats begin with %s",
        trial.number,
        folder,
        found or "the dense ones",
    )
    return found


def _second_work(driver: Driver, winner: TrialRecord, source: int | None, index: int) -> TrialWork:
    folder, (_, key) = driver.run.finals / f"repeat-{index}", _repeat_keys(winner, index)
    return TrialWork(
        key=key,
        number=winner.number,
        assignment=winner.assignment,
        seed=history.trial_seed(driver.job.search.seed, winner.number, _REPEAT + 2 * index + 1),
        folder=folder / "final",
        inherit=None if source is None else driver.run.final_weights(source),
        refine=folder,
        checkpoint=driver.run.checkpoint(key) if driver.is_resumable else None,
        timeout_s=driver.job.search.final_timeout_s,
        store_from=2.0,  # only its accuracy is wanted
    )


def _repeat_keys(winner: TrialRecord, index: int) -> tuple[str, str]:
    """Of the winner made again, and of its long fine-tuning."""
    return f"{winner.number}-repeat-{index}", f"{winner.number}-repeat-{index}-final"
