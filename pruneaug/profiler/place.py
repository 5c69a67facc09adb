"""Where networks are timed: on a CPU or a GPU of this machine, or on a device far away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pruneaug.platforms.load import busy
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.local_gpu import LocalGpu
from pruneaug.profiler.network import ROUNDS, NetworkTime, Progress, Subject, time_networks
from pruneaug.profiler.remote.detect import warnings_of
from pruneaug.profiler.remote.gpu_networks import GpuOverRpc
from pruneaug.profiler.remote.network import time_remotely
from pruneaug.spec.platform import RemoteSpec


@dataclass(frozen=True, slots=True)
class Place:
    """A platform and how it is reached: `remote` is a device far away without a GPU, `gpu` one here or far away."""

    platform: Platform
    remote: RemoteSpec | None = None
    gpu: LocalGpu | GpuOverRpc | None = None

    def time(
        self, subjects: Sequence[Subject], *, rounds: int = ROUNDS, progress: Progress | None = None
    ) -> tuple[NetworkTime, ...]:
        """Times of the subjects in turns, in their order: see `time_networks`.

        Raises DeviceError if the remote device is lost or the GPU is not that of the platform, InputError without one.
        """
        if self.remote is not None:
            return time_remotely(subjects, self.platform, self.remote, rounds=rounds, progress=progress)
        if self.gpu is not None:
            return self.gpu.time(subjects, self.platform, rounds=rounds, progress=progress)
        return time_networks(subjects, self.platform, rounds=rounds, progress=progress)

    def warnings(self) -> tuple[str, ...]:
        """What is going to disturb times that are measured here now; of a GPU only its own `warnings` tell, later."""
        if self.remote is not None:
            return warnings_of(self.remote)
        return busy() if self.gpu is None else ()
