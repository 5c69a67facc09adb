"""What a remote device is: a platform from its own files, and from what a spec says that it does not tell itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pruneaug.errors import DeviceError, SpecError
from pruneaug.platforms.detect import (
    cache_sizes,
    check_name,
    cpu_info,
    cpu_model,
    installed,
    named,
    usable_cores,
    vector_extensions,
)
from pruneaug.platforms.load import frequency_warnings
from pruneaug.platforms.platform import Platform
from pruneaug.spec.platform import HardwareSpec

ARCHITECTURES = ("aarch64", "x86_64")
_COMPILERS = ("apache-tvm", "pruneaug")  # whose versions decide the kernels' speed
_OF_ARM = ("neon", "sve")
_ALLOWED = "proc/self/status"
_MOST_CACHES = 8


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device told: its architecture, LLVM's name of its CPU, and texts of its files by their paths below /."""

    arch: str | None
    mcpu: str | None
    files: dict[str, str]


def read_files(read: Callable[[str], str | None]) -> dict[str, str]:
    """The files of /proc and /sys that tell what a device is, by their paths below /; `read` gives None for no file."""
    files = {}

    def get(path: str) -> str:
        text = read(path)
        if text is not None:
            files[path] = text
        return text or ""

    get("proc/cpuinfo")
    get("sys/fs/cgroup/cpu.max")
    cpus = "sys/devices/system/cpu"
    for cpu in allowed_cpus(get(_ALLOWED)):
        get(f"{cpus}/cpu{cpu}/topology/thread_siblings_list")
    for index in range(_MOST_CACHES):
        folder = f"{cpus}/cpu0/cache/index{index}"
        if not get(f"{folder}/type"):
            break
        get(f"{folder}/size")
        get(f"{folder}/level")
    for name in ("scaling_governor", "scaling_max_freq", "cpuinfo_max_freq"):
        get(f"{cpus}/cpu0/cpufreq/{name}")
    return files


def allowed_cpus(status: str) -> list[int]:
    """The numbers of the CPUs that a process may use, from its /proc/self/status; empty if that does not tell."""
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == "Cpus_allowed_list":
            ends = [part.strip().partition("-") for part in value.split(",")]
            return [cpu for first, _, last in ends for cpu in range(int(first), int(last or first) + 1)]
    return []


def tells_all(hardware: HardwareSpec) -> bool:
    """Whether a spec says all that must be known of a device, so that it need not be asked."""
    return None not in (hardware.arch, hardware.cpu, hardware.isa, hardware.cores, hardware.mcpu)


def remote_platform(
    hardware: HardwareSpec, facts: DeviceFacts, threads: int | None, name: str | None, *, dtype: str = "float32"
) -> Platform:
    """The platform of a device with `threads` threads (none: one per core); `hardware` goes before what it told.

    Its fingerprint is the one that `detect` finds on the device itself, where `hardware` says nothing else. Raises
    SpecError for a name that is no folder name, too many threads or extensions of other CPUs; DeviceError if facts are
    missing.
    """
    check_name(name)
    with _root(facts) as root:
        info, caches = cpu_info(root), cache_sizes(root)
        logical = allowed_cpus(facts.files.get(_ALLOWED, ""))
        cores = hardware.cores or (usable_cores(logical, root) if logical else 0)
    arch = hardware.arch or facts.arch or ""
    if arch and arch not in ARCHITECTURES:
        raise DeviceError(
            f"a remote platform must have one of the architectures {', '.join(ARCHITECTURES)}, but the device is "
            f"{arch}; choose another device"
        )
    cpu = hardware.cpu or cpu_model(info) or (arch if info else "")
    if others := [name for name in hardware.isa or () if (name in _OF_ARM) != (arch == "aarch64")]:
        raise SpecError(
            f"platform.remote.hardware.isa must be of {arch} CPUs, but got {', '.join(others)}; leave it out, and the "
            "device tells"
        )
    isa = vector_extensions(info if hardware.isa is None else {"flags": " ".join(hardware.isa)}, arch)
    found = {"arch": arch, "cpu": cpu, "isa": isa or info, "cores": cores}
    if missing := [key for key, value in found.items() if not value]:
        raise DeviceError(
            f"the {', '.join(missing)} of a remote platform must be known, but the device does not tell; write "
            f"platform.remote.hardware: {{{', '.join(f'{key}: ...' for key in missing)}}}"
        )
    most = max(cores, len(logical))
    if threads is not None and threads > most:
        raise SpecError(
            f"platform.threads must be between 1 and the {most} CPUs of the device, but got {threads}; leave it out "
            "for one per core"
        )
    platform = Platform(
        name=name or "",
        cpu=cpu,
        arch=arch,
        isa=isa,
        cores=cores,
        threads=threads or cores,
        caches=caches if hardware.caches is None else tuple(sorted(hardware.caches.items())),
        dtype=dtype,
        mcpu=hardware.mcpu or facts.mcpu or _generic(arch, isa),
        versions=compiler_versions(),
        triple=f"{arch}-unknown-linux-gnu",
    )
    return platform if name else named(platform)


def compiler_versions() -> tuple[tuple[str, str], ...]:
    """The versions here of the packages that decide the speed of kernels there."""
    return installed(_COMPILERS)


def device_warnings(facts: DeviceFacts) -> tuple[str, ...]:
    """Warnings about the frequency of a device's CPU."""
    with _root(facts) as root:
        return tuple(f"on the device {warning}" for warning in frequency_warnings(root))


@contextmanager
def _root(facts: DeviceFacts) -> Iterator[Path]:
    """A folder with the files that a device told of."""
    with tempfile.TemporaryDirectory(prefix="pruneaug-") as folder:
        for path, text in facts.files.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_text(text)
        yield Path(folder)


def _generic(arch: str, isa: tuple[str, ...]) -> str:
    """LLVM's name for any CPU that has these vector extensions."""
    if arch == "aarch64":
        return "generic"
    return "x86-64-v4" if "avx512f" in isa else "x86-64-v3" if "avx2" in isa else "x86-64-v2"
