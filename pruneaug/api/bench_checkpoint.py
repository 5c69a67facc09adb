"""The verb `bench`: a checkpoint against the dense network, measured in turns on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pruneaug.api.bench_gpu_network import bench_gpu_network
from pruneaug.api.benching import BASELINES, described, disturbances, elsewhere, measure, of_checkpoint, predicted_ms
from pruneaug.api.job import Progress
from pruneaug.api.loading import check_threads, load_model, plans_for, platform_for
from pruneaug.exporter.checkpoint import read_checkpoint
from pruneaug.profiler.gpu_networks import GPU_RUNTIMES
from pruneaug.profiler.network import ROUNDS, Subject
from pruneaug.profiler.place import Place
from pruneaug.profiler.runtimes import check_runtimes
from pruneaug.report.data import OWN_DENSE, OWN_SPARSE
from pruneaug.runtime.graph import export_program


def bench(
    checkpoint: str | Path,
    *,
    model: nn.Module | None = None,
    against: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int = ROUNDS,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint's network and the same network dense, in `against` and compiled by us.

    It runs on this machine: on its first GPU if the checkpoint is for one, as `bench_gpu_network` measures. Dense times
    do not depend on the weights' values, so the dense network is the checkpoint's with its zeros computed. Returns what
    `pruneaug bench --json` prints: `latency_ms` by runtime, `best_dense`, `speedup_vs_best_dense`, `predicted_ms`,
    `max_relative_error`, `runtimes`, `skipped`, `platform`, `warnings` and more. Without `against` all runtimes of the
    device are measured; one whose packages are absent is skipped. `model`, `threads` and `trust_code` are those of
    `load`. Raises InputError for an unknown runtime, CheckpointError, CompileError.
    """
    opened = read_checkpoint(checkpoint)
    if opened.platform.is_gpu:
        check_threads(opened, threads)
        return bench_gpu_network(
            str(checkpoint), model=model, against=GPU_RUNTIMES if against is None else against, rounds=rounds,
            trust_code=trust_code, progress=progress,
        )  # fmt: skip
    against = BASELINES if against is None else against
    check_runtimes(against)
    platform = platform_for(opened, threads)
    network = load_model(opened, model, trust_code)
    program = export_program(network, opened.example_inputs)
    dense_plans = {entry["name"]: str(entry["dense_plan"]["variant"]) for entry in opened.info["layers"]}
    plans, place = plans_for(opened, platform), Place(platform)
    warnings = (*elsewhere(opened, platform), *place.warnings())
    times = measure(
        place,
        against,
        dense=Subject(OWN_DENSE, network, program, opened.network, dense_plans if plans else {}),
        pruned=Subject(OWN_SPARSE, network, program, opened.network, plans, opened.masks),
        rounds=rounds,
        progress=progress,
    )
    return {
        "network": str(checkpoint),
        **of_checkpoint(opened),
        "batch": len(opened.example_inputs[0]),
        **described(times, platform, against),
        "predicted_ms": predicted_ms(opened, platform),
        "patterns": [],
        "warnings": [*warnings, *disturbances(times)],
    }
