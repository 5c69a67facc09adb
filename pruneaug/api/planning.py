"""The dry run: what a search would do, before it does it."""

from __future__ import annotations

import time
from math import ceil
from typing import Any

import torch

from pruneaug.api.job import Job, OpenJob, open_job
from pruneaug.api.profiling import estimate_profile
from pruneaug.errors import LatencyTableError, SpecError
from pruneaug.latency.network import predict
from pruneaug.platforms import match_platform
from pruneaug.platforms.cuda import gpu_platform
from pruneaug.profiler.remote.detect import examine
from pruneaug.profiler.remote.gpu import detect_remote_gpu
from pruneaug.searcher.cost import ending_s
from pruneaug.searcher.objective import check_reachable
from pruneaug.searcher.rules import wanted_choices
from pruneaug.searcher.space import build_space
from pruneaug.searcher.study import least_latency_us, make_plugins
from pruneaug.spec.models import SearchSpec, TrainSpec
from pruneaug.tasks.protocol import Task


def dry_run(job: Job, *, task: Task | None = None) -> dict[str, Any]:
    """Layers, size of the space, table coverage, dense and best reachable latency, and the time that a run would take.

    One training step is run for the estimate, and one validation batch to check its labels. Latencies are None where
    the platform was not profiled yet.
    Raises InputError for a job that could not run, limits that no network of the space keeps included.
    """
    opened = open_job(job, task)
    strategy, *_ = make_plugins(opened.spec)
    wanted_choices(opened.network, opened.spec.space)
    if opened.store.libraries():
        match_platform(opened.store.folder, opened.platform)
    missing, cells, seconds = estimate_profile(opened)
    search, training = opened.spec.search, opened.spec.finetune
    step_s = _step_s(opened, training.trial)
    trial_s, final_s = (_training_s(opened, spec, step_s) for spec in (training.trial, training.final))
    workers = _side_by_side(search)
    _check_validation(opened, training.trial)
    facts: dict[str, Any] = {
        "platform": opened.platform.name,
        "layers": [
            {"name": layer.name, "op": layer.op.key, "calls": layer.calls, "macs": layer.op.macs}
            for layer in opened.network.layers
        ],
        "kept_dense": [{"name": kept.name, "reason": kept.reason} for kept in opened.network.kept_dense],
        "cells": cells,
        "cells_missing": missing,
        "coverage": 1 - missing / cells,
        "space_size": None,
        "latency_ms_dense": None,
        "latency_ms_best": None,
        "seconds_profile": seconds,
        "seconds_dense_training": 0.0 if opened.task.trained else _training_s(opened, opened.spec.task.train, step_s),
        "seconds_search": ceil(search.trials / workers) * trial_s
        + ending_s(trial_s, final_s, training.finalists, training.repeats, workers),
    }
    try:
        table, rest_us, _ = opened.measured()
        space = build_space(opened.network, opened.spec.space, table, rest_us)
    except LatencyTableError:
        return facts
    dense_us, best_us = predict(opened.network, {}, table, rest_us).total_us, least_latency_us(strategy, space)
    check_reachable(search, dense_us, best_us)
    return facts | {"space_size": space.size(), "latency_ms_dense": dense_us / 1e3, "latency_ms_best": best_us / 1e3}


def examine_device(job: Job) -> dict[str, dict[str, Any]]:
    """Sections of JSON values about the remote device of a job: device, load. Of a GPU: device. Takes some seconds.

    Raises SpecError for a job without one, DeviceError if it does not answer.
    """
    spec = open_job(job).spec.platform
    if spec.remote is None:
        raise SpecError(
            "a job must have platform.remote for its device to be examined, but it has none; `pruneaug doctor` without "
            "a job tells about this machine"
        )
    if spec.gpu is not None:
        gpu = detect_remote_gpu(spec.remote, spec.gpu)
        found = gpu_platform(gpu, dtype=spec.dtype, name=spec.name)
        known = {"address": spec.remote.address, "platform": found.name, **gpu.to_json(), "torch": gpu.torch}
        return {"device": {**known, "fingerprint": found.fingerprint}}
    platform, warnings = examine(spec.remote, spec.threads, spec.name)
    return {
        "device": {
            "address": spec.remote.address,
            "platform": platform.name,
            "model": platform.cpu,
            "arch": platform.arch,
            "vector extensions": list(platform.isa),
            "compiled for": platform.mcpu,
            "cores": platform.cores,
            "threads": platform.threads,
            "caches": dict(platform.caches),
            "fingerprint": platform.fingerprint,
        },
        "load": {"warnings": list(warnings)},
    }


def _step_s(job: OpenJob, spec: TrainSpec) -> float:
    """Seconds of one training step, after one to warm up."""
    model = job.task.build_model().train()
    batch = next(iter(job.task.batches("train", spec.batch_size, 0)))
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        job.task.loss(model(*batch.inputs), batch).backward()  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - start
    return seconds


def _check_validation(job: OpenJob, spec: TrainSpec) -> None:
    """Raises TaskError if the labels are none of the network's, before a dense training that would find it out."""
    batch = next(iter(job.task.batches("validation", spec.batch_size)))
    with torch.no_grad():
        job.task.loss(job.task.build_model().eval()(*batch.inputs), batch)


def _side_by_side(search: SearchSpec) -> int:
    """How many trainings go on at a time, each as fast as one alone: workers that share out the cores of this machine
    are together no faster than one that has them all."""
    has_machines = bool(search.executor.options.get("gpus") or search.executor.options.get("address"))
    return search.executor.workers if has_machines else 1


def _training_s(job: OpenJob, spec: TrainSpec, step_s: float) -> float:
    return spec.epochs * -(-job.task.size("train") // spec.batch_size) * step_s
