"""What this machine is: CPU, vector extensions, cores and caches, read from Linux's /proc and /sys where they exist."""

from __future__ import annotations

import os
import platform as python_platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from pruneaug.errors import SpecError
from pruneaug.platforms.platform import Platform

ROOT = Path("/")
_ISA = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "neon", "sve")
_VERSIONED = ("apache-tvm", "pruneaug", "torch")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def detect(
    threads: int | None = None, name: str | None = None, *, dtype: str = "float32", root: Path = ROOT
) -> Platform:
    """The platform of this machine with `threads` threads (none: one per core) for networks in `dtype`.

    Its hardware names it, unless `name` is given. Raises SpecError for a name that is no folder name, or more threads
    than logical CPUs.
    """
    check_name(name)
    logical = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cores = usable_cores(logical, root)
    if threads is not None and not 1 <= threads <= len(logical):
        raise SpecError(
            f"threads (--threads, or platform.threads of a job) must be between 1 and the {len(logical)} CPUs of this "
            f"process, but got {threads}; leave it out for one per core"
        )
    arch = {"arm64": "aarch64", "AMD64": "x86_64"}.get(python_platform.machine(), python_platform.machine())
    info = cpu_info(root)
    cpu = cpu_model(info) or python_platform.processor() or arch
    found = Platform(
        name=name or "",
        cpu=cpu,
        arch=arch,
        isa=vector_extensions(info, arch),
        cores=cores,
        threads=threads or cores,
        caches=cache_sizes(root),
        dtype=dtype,
        versions=installed(_VERSIONED),
    )
    return found if name else named(found)


def check_name(name: str | None) -> None:
    """Raises SpecError for a name that is no folder name."""
    if name is not None and not _NAME.fullmatch(name):
        raise SpecError(
            f"platform.name must be letters, digits, '.', '_' and '-', because it names a folder, but got {name!r}"
        )


def usable_cores(logical: list[int], root: Path = ROOT) -> int:
    """Physical cores behind these logical CPUs, no more than a container's quota allows."""
    siblings = {
        _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in logical
    }
    quota, _, period = _read(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        return max(1, min(len(siblings), int(quota) // int(period)))
    return len(siblings)


def cpu_model(info: dict[str, str]) -> str:
    """The CPU's name from the fields of one processor of /proc/cpuinfo; "" if they hold none.

    A virtual machine's model name is often generic, so family, model and stepping are part of it.
    """
    if model := info.get("model name"):
        numbers = [info.get(field, "") for field in ("cpu family", "model", "stepping")]
        return f"{model} ({'-'.join(numbers)})" if all(numbers) else model
    numbers = [info.get(field, "") for field in ("CPU implementer", "CPU part", "CPU revision")]
    return f"ARM ({'-'.join(numbers)})" if all(numbers) else ""


def vector_extensions(info: dict[str, str], arch: str) -> tuple[str, ...]:
    """The extensions that decide kernels, in a fixed order, from the flags of one processor of /proc/cpuinfo."""
    flags = set((info.get("flags") or info.get("Features") or "").split())
    if "asimd" in flags or arch == "aarch64":  # part of every aarch64 CPU
        flags.add("neon")
    return tuple(flag for flag in _ISA if flag in flags)


def is_virtual(root: Path = ROOT) -> bool:
    """Whether this is a virtual machine, whose CPUs the host may move; False where the CPU does not tell (ARM)."""
    return "hypervisor" in cpu_info(root).get("flags", "").split()


def cache_sizes(root: Path = ROOT) -> tuple[tuple[str, int], ...]:
    """Bytes of one instance of each data cache of CPU 0, by level; empty where the machine does not tell."""
    sizes = {}
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, size = _read(index / "type"), re.fullmatch(r"(\d+)([KMG]?)", _read(index / "size"))
        if kind in ("Data", "Unified") and size:
            level = f"L{_read(index / 'level')}{'d' if kind == 'Data' else ''}"
            sizes[level] = int(size[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[size[2]]
    return tuple(sorted(sizes.items()))


def named(found: Platform) -> Platform:
    """The same platform, its name made from its hardware."""
    slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|\bcpu\b|@.*?ghz|processor", "", found.cpu.lower())).strip("-")
    values = {field: getattr(found, field) for field in found.__slots__}
    return Platform(**{**values, "name": f"{slug}-{found.threads}t-{found.dtype}-{found.fingerprint[:6]}"})


def cpu_info(root: Path = ROOT) -> dict[str, str]:
    """The fields of the first processor of /proc/cpuinfo."""
    first, _, _ = _read(root / "proc/cpuinfo").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def installed(packages: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The versions of those of these packages that are installed."""
    return tuple((package, version) for package in packages if (version := _version(package)))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
