"""From a run to the data of its report: a finished one, or one at any moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from pruneaug.api.benching import as_json, summary
from pruneaug.api.job import OpenJob
from pruneaug.errors import RunError
from pruneaug.files import atomic_write_text
from pruneaug.latency.network import NetworkLatency
from pruneaug.latency.table import LatencyTable
from pruneaug.profiler.network import NetworkTime
from pruneaug.report import VERSION, read_report, render_comparison, render_html, verdict
from pruneaug.report.analysis import analysis, dense_caution
from pruneaug.report.compare import check_same_task, comparison
from pruneaug.report.data import OWN_DENSE, OWN_SPARSE, section
from pruneaug.report.folder import constraint_of, is_driven, read_object, trial_numbers, trial_row
from pruneaug.report.holding import layer_facts
from pruneaug.report.unfinished import network_facts, repeats_of, search_facts, unfinished_report
from pruneaug.searcher.final import BestNetwork, FinalScores
from pruneaug.searcher.rundir import RunDir, read_json
from pruneaug.searcher.trial import TrialRecord
from pruneaug.searcher.weights import MODEL, weights_digest
from pruneaug.sparsity.operations import operation_sparsity
from pruneaug.spec import load_job, public_settings


def build_report(
    job: OpenJob,
    table: LatencyTable,
    run: RunDir,
    records: Mapping[int, TrialRecord],
    scores: FinalScores,
    best: BestNetwork | None,
    predicted: NetworkLatency,
    predicted_dense: NetworkLatency,
    dense_model: nn.Module,
    times: Sequence[NetworkTime],
    warnings: Sequence[str],
    artifact: str | None = None,
) -> dict[str, Any]:
    """The data of report.json; the keys are listed in docs/formats.md. What was not measured is None.

    `artifact` is the path of the compiled network in the run folder, if it was saved.
    """
    by_runtime = {time.runtime: time for time in times}
    facts, facts_of_network = summary(times), network_facts(run.path)
    spec = public_settings(job.spec)
    raw = [records[number].to_json() for number in sorted(records)]
    weights = sum(parameter.numel() for parameter in dense_model.parameters())
    known = read_json(run.dense / "record.json")
    dense = {
        "accuracy_validation": known["accuracy_validation"],
        "accuracy_chance": known.get("accuracy_chance"),
        "accuracy_test": scores.dense,
        "latency_ms_predicted": predicted_dense.total_us / 1e3,
        **_measured(by_runtime.get(OWN_DENSE)),
        "sparsity": 0.0,
        "operation_sparsity": 0.0,
        "size_bytes": 4 * weights,
    }
    pruned = None
    if best is not None:
        removed = sum(int((~mask).sum()) for mask in best.masks.values())
        pruned = {
            "accuracy_validation": best.accuracy_validation,
            "accuracy_test": scores.best,
            "latency_ms_predicted": predicted.total_us / 1e3,
            **_measured(by_runtime.get(OWN_SPARSE)),
            "number": best.trial.number,
            "weights": weights_digest(run.best / MODEL),
            "repeats": repeats_of(run.path),
            "sparsity": best.trial.sparsity,
            "operation_sparsity": operation_sparsity(job.network, best.masks),
            "size_bytes": 4 * (weights - removed),
        }
    measured_ms = None if OWN_SPARSE not in by_runtime else by_runtime[OWN_SPARSE].latency_ms
    data: dict[str, Any] = {
        "version": VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "job": {"name": Path(job.spec.run).name, "spec": spec},
        "platform": job.platform.to_json(),
        "network": {
            "name": job.spec.task.model.name if job.spec.task.model else type(dense_model).__name__,
            "parameters": weights,
            "macs": sum(layer.calls * layer.op.macs for layer in job.network.layers),
        },
        "validation_examples": facts_of_network.get("validation_examples"),
        "constraint": constraint_of(spec, dense["latency_ms_predicted"]),
        "dense": dense,
        "best": pruned,
        "baselines": [as_json(time) for time in times if time.runtime != OWN_SPARSE],
        "artifact": artifact,
        "best_dense": facts["best_dense"],
        "speedup_measured": facts["speedup_vs_best_dense"],
        "prediction_error": predicted.total_us / 1e3 / measured_ms - 1 if measured_ms else None,
        "layers": layer_facts(facts_of_network, _layers(table, predicted), raw),
        "kept_dense": [{"name": kept.name, "reason": kept.reason} for kept in job.network.kept_dense],
        "rest_us": predicted.rest_us,
        "trials": [trial_row(record) for record in raw],
        "search": search_facts(run.path, spec, raw),
        "status": {"state": "exported", "wanted": job.spec.search.trials, "running": [], "updated_at": None},
        "warnings": [
            *warnings,
            *(f"{t.runtime} could not be measured: {t.error}" for t in times if t.error is not None),
        ],
    }
    if (caution := dense_caution(data)) is not None:
        data["warnings"].insert(0, caution)
    return {**data, "analysis": analysis(data), "verdict": verdict(data)}


def write_report(run: RunDir, data: Mapping[str, Any]) -> Path:
    """Write report.json and report.html into the run folder; the path of the page. Raises StorageError."""
    atomic_write_text(run.path / "report.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    atomic_write_text(run.path / "report.html", render_html(data))
    return run.path / "report.html"


def report(run: str | Path) -> dict[str, Any]:
    """The report of a run at any moment: while it is searched, after it was killed, or exported.

    Only reads: no lock is taken and nothing is written. Raises RunError if the folder is none of a run.
    """
    folder = RunDir(run).path
    if not (folder / "resolved.yaml").exists():
        raise RunError(
            f"a report needs the folder of a run, but {folder} holds no resolved.yaml; name the `run` of a job, or "
            "run `pruneaug run JOB` first"
        )
    path = folder / "report.json"
    if path.exists() and not is_driven(folder):
        data = read_report(path)
        if _is_current(data, RunDir(folder)):
            return _with_repeats(data, folder)
    data = unfinished_report(folder, public_settings(load_job(folder / "resolved.yaml")))
    return {**data, "analysis": analysis(data), "verdict": verdict(data)}


def _is_current(data: Mapping[str, Any], run: RunDir) -> bool:
    """Whether no trial was added since a report was written, and the search still ends with the same network."""
    if not trial_numbers(run.path) <= {trial.get("number") for trial in data.get("trials") or ()}:
        return False
    best, ended = section(data, "best"), read_object(run.best / "record.json")
    if best.get("number") != ended.get("number"):
        return False
    path = run.best / MODEL
    return "weights" not in best or not path.exists() or best["weights"] == weights_digest(path)


def _with_repeats(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The report with the repeats that there are now: more of them change nothing else that was measured."""
    if not data.get("best") or data["best"].get("repeats") == (repeats := repeats_of(folder)):
        return {"analysis": analysis(data), **data}
    data = {**data, "best": {**data["best"], "repeats": repeats}}
    return {**data, "analysis": analysis(data), "verdict": verdict(data)}


def compare(runs: Sequence[str | Path]) -> dict[str, Any]:
    """The reports of several runs of the same task side by side: `runs`, and what they cover by one measure.

    Raises RunError if a folder is none of a run, or if the runs are of different tasks.
    """
    reports = [
        {**found, "job": {**found["job"], "name": name}}
        for name, found in zip(_names([RunDir(run).path for run in runs]), map(report, runs), strict=True)
    ]
    check_same_task(reports)
    return comparison(reports)


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(set(folders)):
        depth += 1
    return ["/".join(folder.parts[-depth:]) for folder in folders]


def write_page(path: str | Path, data: Mapping[str, Any]) -> Path:
    """Write the page of what `report` or `compare` returned. Raises StorageError."""
    atomic_write_text(path, render_comparison(data["runs"]) if "runs" in data else render_html(data))
    return Path(path)


def _measured(time: NetworkTime | None) -> dict[str, float | str | None]:
    return {
        "max_relative_error": None if time is None else as_json(time)["max_relative_error"],
        "error": None if time is None else time.error,
        "latency_ms_measured": None if time is None else time.latency_ms,
        "latency_ms_p10": None if time is None else time.p10_ms,
        "latency_ms_p90": None if time is None else time.p90_ms,
    }


def _layers(table: LatencyTable, predicted: NetworkLatency) -> list[dict[str, Any]]:
    rows = []
    for layer in predicted.layers:
        record = table.record(layer.op, layer.choice)
        rows.append(
            {
                "name": layer.name,
                "op": layer.op.key,
                "calls": layer.calls,
                **layer.choice.to_json(),
                "latency_us_dense": layer.latency_us_dense,
                "latency_us_dense_best": layer.calls * table.dense(layer.op).latency_us,
                "latency_us": layer.latency_us,
                "library": record.library,
                "variant": record.variant,
            }
        )
    return rows
