"""The verb `bench`: a checkpoint against the dense network, measured in turns on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn

from pruneaug.api.job import Progress, stage
from pruneaug.api.loading import load_model, plans_for, platform_for
from pruneaug.errors import InputError
from pruneaug.exporter.checkpoint import Checkpoint, read_checkpoint
from pruneaug.platforms import Platform
from pruneaug.platforms.load import busy
from pruneaug.profiler.network import NetworkTime, Subject, time_networks
from pruneaug.report.data import OWN_DENSE, OWN_SPARSE
from pruneaug.runtime.graph import export_program
from pruneaug.runtime.plan import plan_from_json

BASELINES = ("torch", "torch-compile")


def bench(
    checkpoint: str | Path,
    *,
    model: nn.Module | None = None,
    against: Sequence[str] = BASELINES,
    threads: int | None = None,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint's network and the same network dense, in `against` and compiled by us.

    Dense times do not depend on the weights' values, so the dense network is the checkpoint's with its zeros computed.
    Returns what `pruneaug bench --json` prints: `latency_ms` by runtime, `best_dense`, `speedup_vs_best_dense`,
    `predicted_ms`, `max_relative_error`, `runtimes`, `platform`, `warnings`.
    `model`, `threads` and `trust_code` are those of `load`. Raises InputError for an unknown runtime, CheckpointError,
    CompileError.
    """
    _check_runtimes(against)
    opened = read_checkpoint(checkpoint)
    platform = platform_for(opened, threads)
    program = export_program(load_model(opened, model, trust_code), opened.example_inputs)
    dense_plans = {entry["name"]: plan_from_json(entry["dense_plan"]) for entry in opened.info["layers"]}
    warnings = busy()
    times = measure(
        platform,
        against,
        dense=Subject(OWN_DENSE, program, opened.network, dense_plans if plans_for(opened, platform) else {}),
        pruned=Subject(OWN_SPARSE, program, opened.network, plans_for(opened, platform), opened.masks),
        progress=progress,
    )
    runtimes = [as_json(time) for time in times]
    return {
        "platform": platform.name,
        **summary(times),
        "predicted_ms": _predicted_ms(opened, platform),
        "max_relative_error": _largest([row["max_relative_error"] for row in runtimes]),
        "runtimes": runtimes,
        "warnings": list(warnings),
    }


def _largest(errors: Sequence[float | None]) -> float | None:
    """None if any is missing: what was not compared is not known to be right."""
    known = [error for error in errors if error is not None]
    return max(known) if known and len(known) == len(errors) else None


def measure(
    platform: Platform,
    against: Sequence[str],
    *,
    dense: Subject,
    pruned: Subject | None,
    progress: Progress | None = None,
) -> tuple[NetworkTime, ...]:
    """Times of the dense network in the runtimes `against` and in ours, and of the pruned one. Raises InputError."""
    _check_runtimes(against)
    others = [Subject(name, dense.program) for name in dict.fromkeys(against)]
    subjects = [*others, dense, *([] if pruned is None else [pruned])]
    return time_networks(subjects, platform, progress=stage(progress, "Bench"))


def summary(times: Sequence[NetworkTime]) -> dict[str, Any]:
    """`latency_ms` by runtime, the fastest dense runtime, and how much faster than it the pruned network is."""
    latency = {time.runtime: time.latency_ms for time in times if time.latency_ms is not None}
    dense = {name: value for name, value in latency.items() if name != OWN_SPARSE}
    best = min(dense, key=lambda name: dense[name], default=None)
    pruned = latency.get(OWN_SPARSE)
    speedup = dense[best] / pruned if best is not None and pruned else None
    return {"latency_ms": latency, "best_dense": best, "speedup_vs_best_dense": speedup}


def as_json(time: NetworkTime) -> dict[str, Any]:
    """JSON values; a relative error that is not finite, of a network whose outputs are not, is null."""
    relative_error = time.max_relative_error
    return {
        "runtime": time.runtime,
        "latency_ms": time.latency_ms,
        "p10": time.p10_ms,
        "p90": time.p90_ms,
        "runs": time.runs,
        "max_relative_error": relative_error if relative_error is not None and isfinite(relative_error) else None,
        "error": time.error,
    }


def _check_runtimes(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in BASELINES]:
        raise InputError(f"`against` must name runtimes of {', '.join(BASELINES)}, but got {', '.join(unknown)}")


def _predicted_ms(checkpoint: Checkpoint, platform: Platform) -> float | None:
    if checkpoint.info["platform"]["fingerprint"] != platform.fingerprint:
        return None
    value = checkpoint.info["latency"]["ms_predicted"]
    return None if value is None else float(value)
