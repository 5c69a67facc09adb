"""The verb `profile`: measure the platform for a job's network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pruneaug.api.job import Job, OpenJob, Progress, open_job, stage
from pruneaug.errors import InputError
from pruneaug.kernels.cuda.ahead import compile_ahead
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.latency.rest import alike, sampled_sparsities, write_rest
from pruneaug.network.layers import Network
from pruneaug.network.ops import Op
from pruneaug.profiler.cuda.cases import NETWORK_LAYOUTS, groups_of, has_kernels, shapes_of
from pruneaug.profiler.cuda.cells import shapes_of_cells
from pruneaug.profiler.cuda.process import BUDGET_S, GpuProcess
from pruneaug.profiler.cuda.profile import profile_gpu
from pruneaug.profiler.plan import plan, wanted
from pruneaug.profiler.remote.detect import warnings_of
from pruneaug.profiler.remote.gpu import remote_gpu
from pruneaug.profiler.rest import measure_rest, sample_network
from pruneaug.profiler.run import (
    DEFAULT_MEASURER,
    REMOTE_MEASURER,
    TIMEOUT_S,
    ProfileResult,
    profile_ops,
    sole_profile,
)
from pruneaug.runtime.cuda.building import fused_layers
from pruneaug.searcher.rules import dense_ops, measured_choices
from pruneaug.sparsity.patterns import parse_pattern
from pruneaug.spec.platform import PlatformSpec
from pruneaug.tasks.protocol import Task

# About what one cell takes: on a GPU its rounds last for BUDGET_S, and weights are made and checked before.
_CELL_S, _GPU_CELL_S = 0.2, 2 * BUDGET_S
_KERNEL_S = 0.3  # to compile a kernel for a GPU
_REMOTE_WAITS = 5  # timeouts of a device: its measuring process waits too, and tells more


def profile(
    job: Job, *, task: Task | None = None, measurer: str | None = None, progress: Progress | None = None
) -> ProfileResult:
    """Measure what the job's search can choose and has no time for yet, into the platform's latency table.

    Then the network is run sparse, for what it takes beside its layers and what these take in it. What was measured is
    kept at any stop. `measurer` is `package.module:attr`; none: this machine's CPU or GPU, or the remote device's.
    Raises InputError for a wrong job, MeasurementError if the platform cannot measure, StorageError.
    """
    return profile_job(open_job(job, task), measurer, progress)


def profile_job(job: OpenJob, measurer: str | None = None, progress: Progress | None = None) -> ProfileResult:
    """`profile` for a job that is already open."""
    result = _profile_layers(job, measurer, progress)
    with sole_profile(job.store.folder):
        if job.rest() is None:
            told = stage(progress, "Whole network")
            table = job.store.table()
            choices = _sampled(job.network, *measured_choices(job.network, job.spec.space))
            sampled = sample_network(job.model, job.example_inputs, job.network, table, *choices)
            rest = measure_rest(sampled, job.place, told)
            write_rest(job.store.folder, rest)
    return result


def compile_job(job: Job, arch: str, *, task: Task | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Compile the kernels that `profile` measures and `export` may choose for this job, on GPUs of an architecture as
    "sm_90a", into the job's folder of kernels; no GPU is needed.

    Returns `arch`, `kernels` with how many there are, and `failed` with the error of each that could not be compiled.
    Raises InputError for a wrong job or architecture, or one on a CPU.
    """
    opened = open_job(job, task)
    spec = opened.spec.platform
    if spec.gpu is None:
        raise InputError(
            "kernels are compiled for a job that runs on a GPU, but its platform.device is cpu; set it to cuda"
        )
    patterns, _ = measured_choices(opened.network, opened.spec.space)
    measured = groups_of((layer.op for layer in opened.network.layers), [spec.dtype], patterns, (0.0,))
    shapes = [shape for group in measured for shape in shapes_of(group, NETWORK_LAYOUTS, arch)]
    for layer in fused_layers(opened.model, opened.example_inputs, spec.dtype):
        activation, residual = layer.epilogue.activation, layer.epilogue.residual
        for group in groups_of([layer.op], [spec.dtype], patterns, (0.0,)):
            found = shapes_of(group, NETWORK_LAYOUTS, arch)
            shapes += [replace(shape, activation=activation, residual=residual) for shape in found]
    once = list(dict.fromkeys(shapes))
    failed = compile_ahead(once, arch, ProgramFolder(Path(spec.kernels)), progress=stage(progress, "Compile"))
    return {"arch": arch, "kernels": len(once) - len(failed), "failed": failed}


def _profile_layers(job: OpenJob, measurer: str | None, progress: Progress | None) -> ProfileResult:
    spec, ops = job.spec.platform, dict.fromkeys(layer.op for layer in job.network.layers)
    dense_only = _dense_only(job)  # a rule that matches no layer shows before hours of measuring
    patterns, sparsities = measured_choices(job.network, job.spec.space)
    cells = (ops, patterns, sparsities, job.platform, job.store)
    told = stage(progress, "Profile")
    if spec.gpu is not None and measurer is None:
        compiling = stage(progress, "Compile")
        with ExitStack() as stack:
            processes = [stack.enter_context(process) for process in _gpu_processes(spec, spec.gpu)]
            return profile_gpu(*cells, processes, dense_only=dense_only, compiling=compiling, progress=told)
    return profile_ops(*cells, dense_only=dense_only, libraries=job.libraries, progress=told, **_how(job, measurer))


def _gpu_processes(spec: PlatformSpec, index: int) -> list[GpuProcess]:
    """One for each GPU that measures; none of them is started."""
    kernels, remote = Path(spec.kernels), spec.remote
    if remote is None:
        return [GpuProcess(kernels, index=index)]
    return [remote_gpu(kernels, remote, index=index) for _ in range(remote.devices)]


def _dense_only(job: OpenJob) -> frozenset[Op]:
    """The ops that are measured dense only: by the job's rules, or for lack of kernels on a GPU."""
    found = dense_ops(job.network, job.spec.space)
    if job.spec.platform.gpu is None:
        return found
    return found | {layer.op for layer in job.network.layers if not has_kernels(layer.op)}


def _how(job: OpenJob, measurer: str | None) -> dict[str, Any]:
    """How a job's platform is measured, as keyword arguments of `profile_ops`."""
    remote = job.spec.platform.remote
    if measurer is not None or remote is None:
        return {"measurer": measurer or DEFAULT_MEASURER}
    return {
        "measurer": REMOTE_MEASURER,
        "options": {"remote": remote.model_dump(mode="json")},
        "timeout_s": max(TIMEOUT_S, _REMOTE_WAITS * remote.timeout_s),
        "workers": remote.devices,
        "observed": partial(warnings_of, remote),
    }


def _sampled(network: Network, patterns: Sequence[str], sparsities: Sequence[float]) -> tuple[str, tuple[float, ...]]:
    """The pattern that most layers can have, the first of several, and the sparsities at which the network is run."""
    counts = {pattern: len(alike(network, pattern, 0.0)) for pattern in patterns}
    if not sparsities or not any(counts.values()):
        return "dense", (0.0,)
    chosen = max(counts, key=lambda pattern: counts[pattern])
    pattern = parse_pattern(chosen)
    assert pattern is not None
    return chosen, sampled_sparsities(pattern.sparsities(sparsities))


class Estimate(NamedTuple):
    """What a job's profile will measure: cells without a time, cells in all, and about how many seconds it takes."""

    missing: int
    cells: int
    seconds: float


def estimate_profile(job: OpenJob) -> Estimate:
    """Of a GPU the seconds include the kernels that are to be compiled."""
    spec, ops = job.spec.platform, [layer.op for layer in job.network.layers]
    cells = (ops, *measured_choices(job.network, job.spec.space))
    dense_only = _dense_only(job)
    missing = plan(*cells, job.store, job.libraries, dense_only)
    devices = 1 if spec.remote is None else spec.remote.devices
    if spec.gpu is None:
        seconds = len(missing) * _CELL_S / devices
    else:
        arch = job.platform.arch
        kernels = ProgramFolder(Path(spec.kernels)).missing(shapes_of_cells(missing, spec.dtype, arch), arch)
        seconds = len(missing) * _GPU_CELL_S / devices + len(kernels) * _KERNEL_S / (os.cpu_count() or 1)
    return Estimate(len(missing), len(wanted(*cells, job.libraries, dense_only)), seconds)
