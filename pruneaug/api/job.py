"""A job with everything it names: the task, the network, the platform and its latency table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from pruneaug.errors import LatencyTableError
from pruneaug.latency.rest import Rest, network_digest, read_rest
from pruneaug.latency.store import LatencyStore
from pruneaug.latency.table import RUNTIME_LIBRARY, LatencyTable
from pruneaug.network.layers import Network, find_layers
from pruneaug.platforms import Platform, detect, match_platform, open_store, read_platform
from pruneaug.platforms.cuda import detect_gpu, gpu_platform
from pruneaug.platforms.remote import compiler_versions
from pruneaug.platforms.stored import FILE_NAME as PLATFORM_FILE
from pruneaug.profiler.local_gpu import LocalGpu
from pruneaug.profiler.place import Place
from pruneaug.profiler.plan import DENSE_LIBRARIES
from pruneaug.profiler.remote.detect import detect_remote
from pruneaug.profiler.remote.gpu import detect_remote_gpu
from pruneaug.profiler.remote.gpu_networks import GpuOverRpc
from pruneaug.runtime.graph import export_program
from pruneaug.spec import load_job, parse_job
from pruneaug.spec.models import JobSpec
from pruneaug.tasks import build_task
from pruneaug.tasks.protocol import Task

Job = JobSpec | Mapping[str, Any] | str | Path
"""A spec, what a spec file holds, or the path of one."""

Progress = Callable[[str, int, int, str], None]
"""(stage, done, in all, a note)."""


def stage(progress: Progress | None, name: str) -> Callable[[int, int, str], None] | None:
    """What one stage of the work reports to."""
    return None if progress is None else lambda done, total, note: progress(name, done, total, note)


@dataclass(frozen=True)
class OpenJob:
    """A job whose parts are made when they are first needed, once."""

    spec: JobSpec
    given_task: Task | None = None

    @cached_property
    def task(self) -> Task:
        return self.given_task or build_task(self.spec.task)

    @cached_property
    def model(self) -> nn.Module:
        """The network as the task builds it, in eval mode; only its shapes count here."""
        return self.task.build_model().eval()

    @cached_property
    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.task.example_inputs(self.spec.platform.batch))

    @cached_property
    def network(self) -> Network:
        return find_layers(self.model, self.example_inputs)

    @cached_property
    def platform(self) -> Platform:
        """The machine that is measured. A GPU or a remote device is asked, unless what is known of it lies beside its
        table; whoever measures compares them."""
        spec, known = self.spec.platform, self._known_platform()
        if spec.gpu is not None:
            if known is not None and known.is_gpu and known.dtype == spec.dtype:
                return known
            gpu = detect_gpu(spec.gpu) if spec.remote is None else detect_remote_gpu(spec.remote, spec.gpu)
            return gpu_platform(gpu, dtype=spec.dtype, name=spec.name)
        if spec.remote is None:
            return detect(spec.threads, spec.name)
        if known is not None and known.triple is not None and spec.threads in (None, known.threads):
            return replace(known, versions=compiler_versions())
        return detect_remote(spec.remote, spec.threads, spec.name)

    @cached_property
    def place(self) -> Place:
        """Where the job's networks are timed."""
        spec = self.spec.platform
        if spec.gpu is None:
            return Place(self.platform, spec.remote)
        if spec.remote is None:
            return Place(self.platform, gpu=LocalGpu(spec.gpu, spec.kernels))
        return Place(self.platform, gpu=GpuOverRpc(spec.remote, spec.gpu, spec.kernels))

    def _known_platform(self) -> Platform | None:
        """What lies beside the table of a platform that need not be at hand, by its name."""
        spec = self.spec.platform
        if spec.name is None or (spec.gpu is None and spec.remote is None):
            return None
        folder = Path(spec.latency_db) / spec.name
        return read_platform(folder) if (folder / PLATFORM_FILE).exists() else None

    @property
    def libraries(self) -> tuple[str, ...]:
        """Whose dense layers are measured: a remote device without a GPU runs our kernels only."""
        spec = self.spec.platform
        return DENSE_LIBRARIES if spec.remote is None or spec.has_remote_gpu else (RUNTIME_LIBRARY,)

    @cached_property
    def store(self) -> LatencyStore:
        return open_store(self.spec.platform.latency_db, self.platform)

    def program(self, model: nn.Module) -> ExportedProgram:
        """The operators of `model`, a network of this job with any weights."""
        return export_program(model, self.example_inputs)

    @cached_property
    def digest(self) -> str:
        """Identifies the network on its platform, whatever its weights."""
        return network_digest(self.program(self.model), self.network)

    def rest(self) -> Rest | None:
        """The network's measured time on the platform; None if it was not measured yet."""
        return read_rest(self.store.folder, self.digest)

    def measured(self) -> tuple[LatencyTable, float, tuple[str, ...]]:
        """The table of the platform's layers in this network, what it takes beside them in microseconds, and warnings.

        Raises LatencyTableError if the platform or the network was not profiled.
        """
        if not self.store.libraries():
            raise LatencyTableError(
                f"a search needs the latency table of platform {self.platform.name!r}, but {self.store.folder} has "
                "none; run `pruneaug profile JOB` first"
            )
        warnings = match_platform(self.store.folder, self.platform)
        rest = self.rest()
        if rest is None:
            raise LatencyTableError(
                f"a search needs the measured rest of the network, but {self.store.folder} has none for it; "
                "run `pruneaug profile JOB` first"
            )
        return self.store.table().scaled(rest.layer_factor), rest.rest_us, warnings


def open_job(job: Job, task: Task | None = None, overrides: Sequence[str] = ()) -> OpenJob:
    """Read and check a job; plain data need not name the task if it is given. Raises SpecError."""
    if isinstance(job, str | Path):
        return OpenJob(load_job(job, overrides), task)
    if isinstance(job, JobSpec):
        return OpenJob(parse_job(job.model_dump(mode="json"), overrides) if overrides else job, task)
    named = job.get("task") or {}
    if task is not None and isinstance(named, Mapping):
        job = {**job, "task": {"name": task.name, **named}}
    return OpenJob(parse_job(job, overrides), task)
