"""The platform: hardware, threads and dtype that a latency table holds for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pruneaug.errors import LatencyTableError

GPU_ARCH = "sm_"
"""What CUDA's names of architectures begin with."""
_HARDWARE = ("cpu", "arch", "isa", "cores", "caches", "threads", "dtype")


@dataclass(frozen=True, slots=True)
class Platform:
    """One machine as it runs a network; `versions` are those of the packages that decide the kernels' speed."""

    name: str  # folder name in the latency database
    cpu: str  # model, with family and stepping where the machine tells them; or the name of a GPU
    arch: str  # "x86_64" or "aarch64"; "sm_90a" and the like of a GPU
    isa: tuple[str, ...]  # the vector extensions that matter: "avx2", "avx512f", "neon", ...
    cores: int  # physical cores this process may use; multiprocessors of a GPU
    threads: int
    caches: tuple[tuple[str, int], ...]  # ("L1d", bytes), ("L2", bytes), ... of one instance
    dtype: str = "float32"
    mcpu: str | None = None  # the compiler's name of the CPU
    versions: tuple[tuple[str, str], ...] = ()
    triple: str | None = None  # the compiler's name of the machine, if it is another one than this

    @property
    def is_gpu(self) -> bool:
        """Whether networks run on an NVIDIA GPU."""
        return self.arch.startswith(GPU_ARCH)

    @property
    def vector_lanes(self) -> int:
        """float32 values in one vector register."""
        if "avx512f" in self.isa:
            return 16
        return 8 if "avx2" in self.isa else 4

    @property
    def vector_registers(self) -> int:
        """Vector registers that a kernel may use."""
        return 32 if "avx512f" in self.isa or "neon" in self.isa else 16

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits: equal for platforms whose times compare. Name and versions do not count."""
        text = json.dumps([getattr(self, field) for field in _HARDWARE])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def kernel_target(self) -> dict[str, Any]:
        """What a kernel is compiled for, as keyword arguments of `CpuTarget`; no `mcpu` means the CPU at hand."""
        return {
            "lanes": self.vector_lanes,
            "registers": self.vector_registers,
            "threads": self.threads,
            "mcpu": self.mcpu or "",
            "triple": self.triple or "",
        }

    def hardware_differences(self, other: Platform) -> tuple[str, ...]:
        """One readable line per field of the fingerprint in which `other` differs."""
        return tuple(
            f"{field}: {getattr(self, field)} here, {getattr(other, field)} there"
            for field in _HARDWARE
            if getattr(self, field) != getattr(other, field)
        )

    def version_differences(self, other: Platform) -> tuple[str, ...]:
        """One readable line per package of which `other` has another version."""
        ours, theirs = dict(self.versions), dict(other.versions)
        return tuple(
            f"{package}: {ours.get(package, 'none')} here, {theirs.get(package, 'none')} there"
            for package in sorted({*ours, *theirs})
            if ours.get(package) != theirs.get(package)
        )

    def to_json(self) -> dict[str, Any]:
        """A mapping of JSON values, the fingerprint included for readers."""
        return {
            **asdict(self),
            "isa": list(self.isa),
            "caches": dict(self.caches),
            "versions": dict(self.versions),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Platform:
        """Read what `to_json` gave. Raises LatencyTableError for anything else."""
        try:
            platform = cls(
                name=str(value["name"]),
                cpu=str(value["cpu"]),
                arch=str(value["arch"]),
                isa=tuple(map(str, value["isa"])),
                cores=int(value["cores"]),
                threads=int(value["threads"]),
                caches=tuple((str(name), int(size)) for name, size in value["caches"].items()),
                dtype=str(value["dtype"]),
                mcpu=None if value.get("mcpu") is None else str(value["mcpu"]),
                versions=tuple((str(name), str(version)) for name, version in value["versions"].items()),
                triple=None if value.get("triple") is None else str(value["triple"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LatencyTableError(
                "a platform must hold name, cpu, arch, isa, cores, threads, caches, dtype and versions, "
                f"but {error!r}; profile into another folder"
            ) from error
        written = value.get("fingerprint")
        if written is not None and written != platform.fingerprint:
            raise LatencyTableError(
                f"the fingerprint of platform {platform.name!r} must be that of its fields ({platform.fingerprint}), "
                f"but got {written!r}: it was edited by hand; restore it, or profile into another folder"
            )
        return platform
