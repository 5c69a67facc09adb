"""What a spec says of a platform: this machine's CPU or one of its GPUs, a remote device, or a remote GPU."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pruneaug.spec.base import Positive, Spec

KERNELS_FOLDER = "cuda-kernels"
_CPU, _CPU_DTYPE = "cpu", "float32"
_DEVICE = re.compile(r"cpu|cuda(:\d+)?", re.ASCII)


def gpu_number(device: str) -> int | None:
    """The number of a GPU by its name, `cuda` or as `cuda:1`; None for `cpu`. Raises ValueError for anything else."""
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"a device must be `cpu`, `cuda`, or a GPU by its number as `cuda:1`, but got {device!r}")
    return None if device == _CPU else int(device.partition(":")[2] or 0)


class HardwareSpec(Spec):
    """Facts of a device that it does not tell itself; what stands here goes before what it tells."""

    arch: Literal["aarch64", "x86_64"] | None = Field(default=None, description="Instruction set, as `uname -m` says")
    cpu: Annotated[str, Field(min_length=1)] | None = Field(default=None, description="The CPU's model, in any words")
    isa: list[Literal["avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "neon", "sve"]] | None = Field(
        default=None, description="Vector extensions that kernels may use"
    )
    cores: Positive | None = Field(default=None, description="Physical cores that a network may use")
    caches: dict[str, Positive] | None = Field(
        default=None, description="Bytes of one data cache of each level: `L1d`, `L2`, `L3`"
    )
    mcpu: str | None = Field(default=None, description="LLVM's name of the CPU, such as `cortex-a72`")


class RemoteSpec(Spec):
    """A device, or a machine with a GPU, that is reached over TVM's RPC: kernels and networks are measured there."""

    address: str = Field(description="`host:port` of the device's RPC server, or of a tracker")
    tracker_key: Annotated[str, Field(pattern=r"^[^\s:]+$")] | None = Field(
        default=None, description="The key of equal devices at the tracker at `address`; null: `address` is the device"
    )
    devices: Positive = Field(default=1, description="Devices of the tracker that share a profile; 1 without one")
    timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=120.0, description="Longest wait for a free device, and for one measurement on it"
    )
    compiler: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="C compiler for the device, with options if any; null: `cc` on a machine of its kind, else "
        "`aarch64-linux-gnu-gcc` or `x86_64-linux-gnu-gcc`",
    )
    hardware: HardwareSpec = Field(
        default_factory=HardwareSpec, description="Facts of the device that it does not tell itself"
    )

    @field_validator("address")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535 or "/" in host:
            raise ValueError(f"an address must read `host:port`, such as raspberrypi.local:9090, but got {value!r}")
        return value

    @model_validator(mode="after")
    def _several_by_tracker(self) -> RemoteSpec:
        if self.devices > 1 and self.tracker_key is None:
            raise ValueError(
                f"only a tracker knows several devices, but got devices: {self.devices} without tracker_key; give the "
                "tracker's address and its key, or leave `devices` out"
            )
        return self


class PlatformSpec(Spec):
    """The machine that the network will run on."""

    name: str | None = Field(
        default=None, description="Folder name in the latency database; null: made from the detected hardware"
    )
    device: str = Field(
        default="cpu", description="`cpu`, or `cuda` for this machine's first NVIDIA GPU, `cuda:1` for the second"
    )
    threads: Positive | None = Field(
        default=None, description="CPU threads of the network; null: all cores. A GPU has none"
    )
    batch: Positive = Field(default=1, description="Batch size of the network whose latency is minimised")
    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = Field(
        default="float32", description="Number format of weights and activations; on a CPU `float32`"
    )
    latency_db: str = Field(default="latency_db", description="Folder of the latency tables")
    kernels: str = Field(default=KERNELS_FOLDER, description="Folder of the kernels that are compiled for GPUs")
    remote: RemoteSpec | None = Field(default=None, description="Another machine to measure on; null: this one")

    @property
    def gpu(self) -> int | None:
        """The number of the GPU among those that PyTorch sees; None: the network runs on a CPU."""
        return gpu_number(self.device)

    @property
    def has_remote_gpu(self) -> bool:
        """Whether it is a GPU of another machine."""
        return self.gpu is not None and self.remote is not None

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        return "cuda" if gpu_number(value) == 0 else value

    @model_validator(mode="after")
    def _of_one_kind(self) -> PlatformSpec:
        if self.gpu is None and self.dtype != _CPU_DTYPE:
            raise ValueError(
                f"dtype must be {_CPU_DTYPE} on a CPU, but got dtype: {self.dtype}; add `device: cuda`, or leave "
                "`dtype` out"
            )
        if self.gpu is not None and self.threads is not None:
            raise ValueError(
                f"threads are a CPU's, but got threads: {self.threads} with device: {self.device}; leave `threads` out"
            )
        if self.has_remote_gpu:
            self._check_remote_gpu()
        return self

    def _check_remote_gpu(self) -> None:
        """Raises ValueError for what only a remote CPU can have."""
        assert self.remote is not None
        of_cpus = {"compiler": self.remote.compiler, "hardware": self.remote.hardware != HardwareSpec()}
        if wrong := [key for key, given in of_cpus.items() if given]:
            raise ValueError(
                f"{', '.join(f'remote.{key}' for key in wrong)} must be left out with device: {self.device}: a GPU "
                "tells what it is, and needs no C compiler"
            )
