"""Measuring one group: every subject is tried and checked alone, then all take turns."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pruneaug.errors import MeasurementError, PruneaugError
from pruneaug.kernels.cuda.products import CudaCall
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.weights import Weights
from pruneaug.platforms.gpu_state import watched
from pruneaug.profiler.cuda.calls import SubjectCalls, kernel_calls, library_calls, packed
from pruneaug.profiler.cuda.cases import Group, Subject
from pruneaug.profiler.cuda.data import GroupData
from pruneaug.profiler.cuda.device import Device, Run
from pruneaug.profiler.cuda.records import GpuRecord, failed, timed

_RUN_US = 1000.0  # what is timed at once, at least: the events around it cost some microseconds
_ROUNDS = 10, 60  # at least, at most


@dataclass(frozen=True, slots=True)
class Trying:
    """What is done next: a subject is tried alone, or all are timed (None). If the process dies now, that is why."""

    subject: Subject | None


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    """A subject whose results are right."""

    subject: Subject
    found: SubjectCalls
    run: Run
    launches: int  # of a run
    run_us: float  # about
    relative_error: float
    zeros: float  # the share of its weights that are zero
    refused: str | None  # why no graph records the run


def measure_group(
    group: Group, subjects: Sequence[Subject], device: Device, folder: ProgramFolder, *, budget_s: float
) -> Iterator[Trying | GpuRecord]:
    """What is tried, and exactly one record for each subject. Rounds go on for about `budget_s`.

    Raises RuntimeError once a kernel has failed so that the GPU takes no more from this process; the subject that was
    tried last has its record then.
    """
    data, name = GroupData(group, device.torch_device), device.gpu.name
    ready: list[_Ready] = []
    # Other threads may not use the GPU while a graph is recorded: they get the weights in the CPU's memory.
    weights = Weights(data.matrix.cpu(), data.mask.cpu(), data.bias.cpu())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ours = {s: pool.submit(packed, group, s, weights, device.gpu.arch) for s in subjects if s.variant}
        for subject in subjects:
            yield Trying(subject)
            try:
                ready.append(_tried(group, subject, ours.pop(subject, None), data, device, folder))
            except (PruneaugError, RuntimeError) as error:  # PyTorch raises RuntimeError
                yield failed(group, subject, name, f"{type(error).__name__}: {error}")
                device.synchronize()
    if not ready:
        return
    yield Trying(None)
    before = device.state()
    with watched(device.state) as worst:
        times = _in_turns(ready, device, budget_s)
    state = {"before": before.to_json(), "during": worst().to_json()}
    for i, item in enumerate(ready):
        try:
            _check(item.found, item.run, data)  # again: what was timed is right
        except MeasurementError as error:
            yield failed(group, item.subject, name, f"after it was timed {error}")
            continue
        yield timed(
            group, item.subject, name, times[:, i] / item.launches, launches=item.launches,
            weight_copies=len(item.found.calls), max_relative_error=item.relative_error, zeros=item.zeros, state=state,
            not_recorded=item.refused,
        )  # fmt: skip


def _tried(
    group: Group, subject: Subject, call: Future[CudaCall] | None, data: GroupData, device: Device,
    folder: ProgramFolder,
) -> _Ready:  # fmt: skip
    """A subject that has computed the right thing, at first and with all copies of its weights."""
    if call is None:
        found = library_calls(group, subject, data, device)
    else:
        found = kernel_calls(call.result(), data, folder, device)
    found.calls[0]()
    device.synchronize()
    found.relative_error(data)
    run, launches, run_us, refused = _run(found, device)
    error = _check(found, run, data)
    matrix = data.matrix if found.matrix is None else found.matrix
    zeros = float((matrix == 0).float().mean())
    return _Ready(subject, found, run, launches, run_us, error, zeros, refused)


def _check(found: SubjectCalls, run: Run, data: GroupData) -> float:
    """The relative error of what a run computes now. Raises MeasurementError."""
    found.forget()
    run()
    return found.relative_error(data)


def _run(found: SubjectCalls, device: Device) -> tuple[Run, int, float, str | None]:
    """All copies in turn, so often that it takes long enough to be timed; how many launches that is, about how many
    microseconds, and why no graph records them if none does."""
    # Without a graph this would be the time of Python, while other threads pack weights.
    run_of, refused = device.recorded, None
    try:
        once = run_of(found.calls)
    except RuntimeError as error:
        if not found.may_refuse:
            raise
        run_of, refused = _one_by_one, f"{type(error).__name__}: {error}"
        once = run_of(found.calls)
    (us,) = device.times_us([once])
    repeats = max(1, math.ceil(_RUN_US / max(us, 1.0)))
    run = once if repeats == 1 else run_of(found.calls * repeats)
    return run, repeats * len(found.calls), repeats * us, refused


def _one_by_one(calls: Sequence[Run]) -> Run:
    return lambda: [call() for call in calls]


def _in_turns(ready: Sequence[_Ready], device: Device, budget_s: float) -> np.ndarray:
    """Microseconds of the run of each subject in each round: [rounds, subjects]."""
    runs = [item.run for item in ready]
    round_us = sum(item.run_us for item in ready)
    least, most = _ROUNDS
    rounds = max(least, min(most, int(budget_s * 1e6 / round_us)))
    device.times_us(runs)  # the clocks have risen when the first round begins
    return np.array([device.times_us(runs) for _ in range(rounds)])
