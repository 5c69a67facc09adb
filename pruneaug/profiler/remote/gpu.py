"""A GPU of another machine: it is measured as one of this machine is, by a process that speaks with it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from pruneaug.platforms.cuda import Gpu
from pruneaug.profiler.cuda.process import BUDGET_S, DEVICE, START_S, GpuProcess
from pruneaug.profiler.lines import LineProcess
from pruneaug.profiler.process import worker_environment
from pruneaug.spec.platform import RemoteSpec

_BEGIN, _SILENT = 8, 5  # timeouts: what speaks with the machine waits too, tries again, and tells more


def remote_gpu(
    kernels: Path, remote: RemoteSpec, *, index: int = 0, device: str = DEVICE, budget_s: float = BUDGET_S
) -> GpuProcess:
    """What measures on the GPU of this number there; the arguments are those of `GpuProcess`.

    What it lacks of the kernels is uploaded. A kernel hangs if there is nothing to hear for `remote.timeout_s`.
    """
    return GpuProcess(
        kernels,
        timeout_s=_SILENT * remote.timeout_s,
        budget_s=budget_s,
        start=partial(_speaker, remote, device, index),
        start_s=2 * START_S + _BEGIN * remote.timeout_s,
    )


def detect_remote_gpu(remote: RemoteSpec, index: int = 0) -> Gpu:
    """The GPU of this number there. Raises DeviceError if it cannot be used, MeasurementError."""
    with remote_gpu(Path(), remote, index=index) as process:
        return process.gpu()


def _speaker(remote: RemoteSpec, device: str, index: int) -> LineProcess:
    process = LineProcess([sys.executable, "-m", "pruneaug.profiler.remote.gpu_worker"], worker_environment(1))
    process.send({"remote": remote.model_dump(mode="json"), "device": device, "index": index})
    return process
