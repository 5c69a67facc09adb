"""The verb `export`: a finished search's best network as a checkpoint, measured, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pruneaug.api.benching import BASELINES, compile_only, disturbances, measure
from pruneaug.api.job import OpenJob, Progress, open_job
from pruneaug.api.reporting import build_report, write_report
from pruneaug.errors import RunError
from pruneaug.exporter.artifact import add_artifact, artifact_path
from pruneaug.exporter.checkpoint import add_facts, write_checkpoint
from pruneaug.latency.network import NetworkLatency, predict
from pruneaug.profiler.gpu_networks import GPU_RUNTIMES
from pruneaug.profiler.network import NetworkTime, Subject
from pruneaug.report.data import OWN_DENSE, OWN_SPARSE
from pruneaug.runtime.plan import plan_layers
from pruneaug.searcher.dense import load_dense
from pruneaug.searcher.final import finalize, finished_trials, load_best
from pruneaug.searcher.rundir import RunDir, read_json
from pruneaug.spec import public_settings
from pruneaug.tasks.protocol import Task

_OURS_ONLY = "on a remote device only pruneaug's own runtime is measured, so the dense network may be faster in another"


@dataclass(frozen=True, slots=True)
class Exported:
    """`checkpoint` is None if dense is the answer; `report` is what report.json holds."""

    checkpoint: Path | None
    report: Mapping[str, Any]


def export(
    run: str | Path, *, task: Task | None = None, measured: bool = True, progress: Progress | None = None
) -> Exported:
    """Write RUN/checkpoint, measure it against the dense network, and write RUN/report.json and report.html.

    The compiled network that is measured is saved in the checkpoint, as its artifact. `task` is needed again where the
    search was given one. `measured` False leaves the measuring out: the network is only compiled, checked and saved.
    Raises RunError if the search has not ended.
    """
    folder = RunDir(run)
    if not folder.resolved.exists():
        raise RunError(
            f"a run folder must hold {folder.resolved.name}, but {folder.path} does not; run `pruneaug search JOB`"
        )
    return export_job(open_job(folder.resolved, task), folder, measured, progress)


def export_job(job: OpenJob, run: RunDir, measured: bool = True, progress: Progress | None = None) -> Exported:
    """`export` for a job that is already open."""
    with run.lock():
        if not run.info.exists():
            raise RunError(
                f"an export needs a finished search, but {run.path} holds none; run `pruneaug search JOB` first"
            )
        return _export(job, run, measured, progress or (lambda *_: None))


def _export(job: OpenJob, run: RunDir, measured: bool, progress: Progress) -> Exported:
    table, _, warnings = job.measured()
    place = job.place
    rest_us = float(read_json(run.info)["rest_us"])
    records = finished_trials(run, job.spec.search, predict(job.network, {}, table, rest_us).total_us)
    progress("Export", 0, 2, "test accuracy")
    scores = finalize(job.task, run)
    best = load_best(job.task, run)
    dense_model = load_dense(job.task, run)
    assignment = {} if best is None else best.trial.assignment
    predicted = predict(job.network, assignment, table, rest_us)
    predicted_dense = predict(job.network, {}, table, rest_us)
    dense_plans, plans = plan_layers(job.network, {}, table), plan_layers(job.network, assignment, table)
    describe = partial(build_report, job, table, run, records, scores, best, predicted, predicted_dense, dense_model)
    # A checkpoint and a report that are whole come first: the measuring takes a while, and may be stopped.
    report = describe((), warnings)
    checkpoint, pruned = None, None
    progress("Export", 1, 2, "checkpoint")
    if best is not None:
        checkpoint = write_checkpoint(
            run.path / "checkpoint",
            best.model.state_dict(),
            job.network,
            assignment,
            plans,
            dense_plans,
            job.example_inputs,
            {**_facts(job, predicted, predicted_dense), **_results(report)},
        )
        save_to = artifact_path(checkpoint, job.platform)
        pruned = Subject(OWN_SPARSE, best.model, job.program(best.model), job.network, plans, best.masks, save_to)
    write_report(run, report)
    progress("Export", 2, 2, "")
    times: tuple[NetworkTime, ...] = ()
    if measured:
        dense = Subject(OWN_DENSE, dense_model, job.program(dense_model), job.network, dense_plans)
        warnings += place.warnings() if place.remote is None else (*place.warnings(), _OURS_ONLY)
        against = BASELINES if place.gpu is None else GPU_RUNTIMES
        times = compiled = measure(place, against, dense=dense, pruned=pruned, progress=progress)
        warnings += () if place.gpu is None else place.gpu.warnings()
    else:
        compiled = () if pruned is None else (compile_only(place, pruned, progress),)
    warnings += disturbances(times)
    warnings += tuple(f"the artifact could not be saved: {t.save_error}" for t in compiled if t.save_error is not None)
    artifact = None if checkpoint is None else add_artifact(checkpoint, job.platform)
    report = describe(times, warnings, None if artifact is None else str(artifact.relative_to(run.path)))
    if checkpoint is not None:
        add_facts(checkpoint, _results(report))
    write_report(run, report)
    return Exported(checkpoint, report)


def _facts(job: OpenJob, predicted: NetworkLatency, predicted_dense: NetworkLatency) -> dict[str, Any]:
    build = getattr(job.task, "build", None)
    return {
        "platform": job.platform.to_json(),
        "latency": {
            "ms_predicted": predicted.total_us / 1e3,
            "ms_predicted_dense": predicted_dense.total_us / 1e3,
        },
        "kept_dense": [{"name": kept.name, "reason": kept.reason} for kept in job.network.kept_dense],
        # A task given in Python is not in the spec, so the spec could not rebuild its network.
        "spec": None if job.given_task is not None else public_settings(job.spec),
        "model_facts": dict(build.keywords) if isinstance(build, partial) else {},
    }


def _results(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: report[key] for key in ("dense", "best", "best_dense", "speedup_measured")}
