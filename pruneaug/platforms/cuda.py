"""An NVIDIA GPU as a platform: which one it is, and what its kernels are compiled for."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from pruneaug.errors import DeviceError, InputError
from pruneaug.platforms.detect import check_name, installed, named
from pruneaug.platforms.gpu_state import gpu_limits, gpu_state
from pruneaug.platforms.platform import Platform

_VERSIONED = ("apache-tvm", "cuda-bindings", "nvidia-cuda-nvrtc", "pruneaug", "torch")


@dataclass(frozen=True, slots=True)
class Gpu:
    """What PyTorch and the driver tell of a GPU."""

    name: str
    uuid: str  # as NVML and nvidia-smi take it
    capability: tuple[int, int]
    multiprocessors: int
    l2_bytes: int
    memory_bytes: int
    driver: str | None = None
    cuda: str | None = None  # the version that PyTorch is built for
    most_sm_mhz: float | None = None  # to which clocks may rise
    most_memory_mhz: float | None = None
    most_power_w: float | None = None
    torch: str | None = None  # the version that runs layers there

    @property
    def arch(self) -> str:
        """What kernels are compiled for: of compute capability 9.0 with the instructions that only it has."""
        major, minor = self.capability
        return f"sm_{major}{minor}{'a' if major == 9 else ''}"

    def to_json(self) -> dict[str, Any]:
        """As `pruneaug doctor` shows it."""
        return {
            "name": self.name,
            "compute capability": ".".join(map(str, self.capability)),
            "arch": self.arch,
            "multiprocessors": self.multiprocessors,
            "L2 bytes": self.l2_bytes,
            "memory bytes": self.memory_bytes,
            "driver": self.driver,
            "largest SM MHz": self.most_sm_mhz,
            "largest memory MHz": self.most_memory_mhz,
            "largest power W": self.most_power_w,
        }


def detect_gpu(index: int = 0) -> Gpu:
    """The GPU of this number among those that PyTorch sees. Raises InputError if there is no such GPU."""
    import torch  # here, because it takes seconds

    if not torch.cuda.is_available():
        raise InputError(f"device 'cuda' needs a GPU that PyTorch can use, but {cuda_obstacle(torch.version.cuda)}")
    if index >= (count := torch.cuda.device_count()):
        raise InputError(
            f"device 'cuda:{index}' must be one of the {count} GPUs that PyTorch sees, counted from 0; choose another"
        )
    facts = torch.cuda.get_device_properties(index)
    uuid = f"GPU-{facts.uuid}"
    limits = gpu_limits(uuid)
    return Gpu(
        facts.name,
        uuid,
        (facts.major, facts.minor),
        facts.multi_processor_count,
        facts.L2_cache_size,
        facts.total_memory,
        gpu_state(uuid).driver,
        torch.version.cuda,
        limits.sm_mhz,
        limits.memory_mhz,
        limits.power_w,
        dict(installed(["torch"])).get("torch"),
    )


def gpu_platform(gpu: Gpu, *, dtype: str, name: str | None = None) -> Platform:
    """The platform of networks in `dtype` on this GPU; its hardware names it, unless `name` is given.

    Its fields are those of every platform: `cpu` is the GPU's name, `arch` its architecture as CUDA names it, `cores`
    its multiprocessors. The number of threads is 1: one host thread starts the kernels. Versions are those of the
    packages that compile here, and of those that run there.

    Raises SpecError for a name that is no folder name.
    """
    check_name(name)
    there = {"cuda": gpu.cuda, "driver": gpu.driver, "torch": gpu.torch}
    versions = dict(installed(_VERSIONED)) | {key: value for key, value in there.items() if value}
    found = Platform(
        name=name or "",
        cpu=gpu.name,
        arch=gpu.arch,
        isa=(),
        cores=gpu.multiprocessors,
        threads=1,
        caches=(("L2", gpu.l2_bytes),),
        dtype=dtype,
        versions=tuple(versions.items()),
    )
    return found if name else named(found)


def check_gpu(platform: Platform, gpu: Gpu) -> tuple[str, ...]:
    """What differs in versions from when a platform was profiled, in readable lines.

    Raises DeviceError if it is another GPU.
    """
    here = gpu_platform(gpu, dtype=platform.dtype, name=platform.name)
    if differences := platform.hardware_differences(here):
        raise DeviceError(
            f"the GPU must be the platform {platform.name!r}, but it is another one: {'; '.join(differences)} "
            "(here: the platform, there: the GPU); choose another platform.name"
        )
    return here.version_differences(platform)


def cuda_obstacle(built_for: str | None) -> str:
    """Why a torch that was built for this CUDA version (None: for the CPU) sees no GPU."""
    if built_for is None:
        return "this torch is built for the CPU only; install a CUDA build of torch"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all GPUs; unset it"
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not on the PATH: there is no NVIDIA driver; install it, or pass the GPU to the container"
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {error}; restart the driver"
    if answer.returncode or "GPU" not in answer.stdout:
        words = (answer.stderr or answer.stdout).strip() or "it lists no GPU"
        return f"nvidia-smi sees no GPU: {words}"
    return f"the driver is too old for CUDA {built_for}, for which this torch is built; update one of the two"
