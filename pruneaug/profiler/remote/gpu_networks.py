"""Whole networks on a GPU of another machine: sent there as they are, built and timed there as on a GPU of this one."""

from __future__ import annotations

import platform as python
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pruneaug.errors import DeviceError, InputError, MeasurementError
from pruneaug.files import storage_errors
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.platforms.cuda import check_gpu
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.cuda.process import DEVICE, SESSIONS, GpuProcess, SessionEnded
from pruneaug.profiler.cuda.programs import compile_missing
from pruneaug.profiler.lines import ProcessEnded
from pruneaug.profiler.local_gpu import GpuNetworks
from pruneaug.profiler.network import START_S, NetworkTime, Progress, Subject
from pruneaug.profiler.remote.gpu import remote_gpu
from pruneaug.spec.platform import KERNELS_FOLDER, RemoteSpec

_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")
_PACKAGES = ("site-packages", "dist-packages")  # folders on the path, the user's own ones among them


@dataclass(slots=True)
class GpuOverRpc:
    """The GPU of this number on another machine; `device` as in `GpuProcess`.

    `kernels` is the folder of compiled kernels: what it lacks is compiled here if TVM is installed, else there.
    """

    remote: RemoteSpec
    index: int = 0
    kernels: str | Path = KERNELS_FOLDER
    device: str = DEVICE
    _warnings: tuple[str, ...] = field(default=(), init=False)

    def warnings(self) -> tuple[str, ...]:
        """Whether something held its clocks down when it last timed networks."""
        return self._warnings

    def time(
        self, subjects: Sequence[Subject], platform: Platform, *, rounds: int, progress: Progress | None = None
    ) -> tuple[NetworkTime, ...]:
        """As `LocalGpu.time`. A session that ends is begun again, a few times.

        Raises InputError for a network that cannot be sent, DeviceError if the machine is lost, or its GPU is not that
        of the platform, MeasurementError if the measuring process crashes or hangs.
        """
        networks = GpuNetworks.of(subjects, platform.dtype, rounds)
        shapes, kernels = networks.shapes(platform.arch), ProgramFolder(Path(self.kernels))
        compile_missing(shapes, platform.arch, kernels, progress)
        paths = [network.save_to for network in networks.networks]
        there = tuple(
            replace(network, save_to=to and Path(f"network{number}"))
            for number, (network, to) in enumerate(zip(networks.networks, paths))
        )
        with (
            tempfile.TemporaryDirectory(prefix="pruneaug-") as folder,
            remote_gpu(Path(folder), self.remote, index=self.index, device=self.device) as process,
        ):
            file = Path(folder) / "networks"
            with storage_errors(file):
                file.write_bytes(packed(replace(networks, networks=there)))
            task = {
                "networks": str(file),
                "saved": [n.save_to and [str(n.save_to), str(to)] for n, to in zip(there, paths)],
                "kernels": str(kernels.path),
                "shapes": [shape.key for shape in shapes],
                "python": python.python_version(),
            }
            for left in reversed(range(SESSIONS)):
                try:
                    check_gpu(platform, process.gpu())
                    return self._times(process, task, progress)
                except SessionEnded as ended:
                    if not left:
                        raise DeviceError(
                            f"the machine at {self.remote.address} must stay connected while networks run, but its "
                            f"session ended {SESSIONS} times: {ended}; look at the server's log, and at its memory"
                        ) from None
                except ProcessEnded as ended:
                    raise MeasurementError(
                        f"networks must run on the GPU of the machine at {self.remote.address}, but the process that "
                        f"times them {ended}"
                    ) from None
        raise AssertionError("unreachable")

    def _times(
        self, process: GpuProcess, task: Mapping[str, Any], progress: Progress | None
    ) -> tuple[NetworkTime, ...]:
        times: list[NetworkTime] = []
        for event in process.asked(task, START_S):
            match event["event"]:
                case "progress" if progress is not None:
                    progress(event["done"], event["total"], event["note"])
                case "network":
                    times.append(NetworkTime(**event["time"]))
                case "warnings":
                    self._warnings = tuple(event["warnings"])
        return tuple(times)


def packed(networks: GpuNetworks) -> bytes:
    """The networks for a machine that lacks the user's own modules, but has all packages that are installed here.

    Raises InputError for one that cannot be pickled, or without cloudpickle.
    """
    try:
        import cloudpickle
    except ImportError:
        raise InputError(
            "networks are sent to a remote GPU by cloudpickle, but it is not installed; pip install 'pruneaug[serve]'"
        ) from None
    with _by_value(cloudpickle):
        try:
            data: bytes = cloudpickle.dumps(networks)
        except Exception as error:  # whatever a user's object raises
            raise InputError(
                "a network must be pickled to run on a remote GPU, but it cannot be "
                f"({type(error).__name__}: {error}); leave open files, locks and the like out of it"
            ) from error
    return data


@contextmanager
def _by_value(cloudpickle: Any) -> Iterator[None]:
    """Pickle what is defined in modules that are not installed with all their code."""
    installed = [sysconfig.get_path(name) for name in _PATHS]
    installed += [path for path in sys.path if Path(path).name in _PACKAGES]
    folders = [Path(path).resolve() for path in installed]
    folders.append(Path(__file__).resolve().parents[2])  # pruneaug, which is there too

    def is_own(module: Any) -> bool:
        file = getattr(module, "__file__", None)
        return file is not None and not any(Path(file).resolve().is_relative_to(folder) for folder in folders)

    own = [module for name, module in list(sys.modules.items()) if name != "__main__" and is_own(module)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)
