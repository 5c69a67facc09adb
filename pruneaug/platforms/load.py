"""Whether a CPU is quiet and fast enough to be measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_OTHERS_LIMIT = 0.1  # CPUs in use by other processes
_STEAL_LIMIT = 0.02  # of the time


@dataclass(frozen=True, slots=True)
class CpuTicks:
    """Clock ticks since the machine started, over all CPUs: in use, taken by the hypervisor, and in all."""

    used: int
    stolen: int
    total: int


def busy(seconds: float = 0.2, *, root: Path = ROOT) -> tuple[str, ...]:
    """Reasons why times measured now may be wrong; empty on a quiet machine. Takes `seconds`.

    What the machine does not tell (a container without /sys, another system than Linux) is not warned about.
    """
    before, own_before = cpu_ticks(root), _own_ticks()
    throttled = _throttle_count(root)
    time.sleep(seconds)
    after, own_after = cpu_ticks(root), _own_ticks()
    found = list(frequency_warnings(root))
    if before and after:
        found += use_warnings(before, after, own_after - own_before, _cpus(root))
    if _throttle_count(root) > throttled:
        found.append("the CPU was throttled while it was observed; let it cool down")
    return tuple(found)


def use_warnings(before: CpuTicks, after: CpuTicks, own_ticks: float, cpus: int) -> tuple[str, ...]:
    """Warnings about what other processes and the hypervisor took between two readings."""
    total = after.total - before.total
    if total <= 0:
        return ()
    others = max(0.0, after.used - before.used - own_ticks) / total * cpus
    stolen = (after.stolen - before.stolen) / total
    found = []
    if others > _OTHERS_LIMIT:
        found.append(f"other processes use {others:.1f} of {cpus} CPUs; stop them, or the times will be too long")
    if stolen > _STEAL_LIMIT:
        found.append(
            f"the hypervisor takes {stolen:.0%} of the CPU time; other machines on this host disturb the times"
        )
    return tuple(found)


def frequency_warnings(root: Path = ROOT) -> tuple[str, ...]:
    """Warnings about the frequency governor and a frequency below the hardware's."""
    found = []
    policies = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    governors = {text for policy in policies if (text := _read(policy / "scaling_governor"))}
    if governors - {"performance"}:
        names = ", ".join(sorted(governors))
        found.append(f"the frequency governor is {names}; times vary less with `cpupower frequency-set -g performance`")
    for policy in policies:
        cap, hardware = _read(policy / "scaling_max_freq"), _read(policy / "cpuinfo_max_freq")
        if cap.isdigit() and hardware.isdigit() and int(cap) < int(hardware):
            found.append(
                f"{policy.parent.name} is limited to {int(cap) / 1e6:.1f} of {int(hardware) / 1e6:.1f} GHz; "
                "raise scaling_max_freq"
            )
            break
    return tuple(found)


def cpu_ticks(root: Path = ROOT) -> CpuTicks | None:
    """The first line of /proc/stat; None where there is none."""
    fields = _read(root / "proc/stat").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    user, nice, system, idle, iowait, irq, softirq, stolen = map(int, fields[1:9])  # guest time is part of user
    used = user + nice + system + irq + softirq
    return CpuTicks(used, stolen, used + stolen + idle + iowait)


def _own_ticks() -> float:
    own = os.times()
    return (own.user + own.system) * os.sysconf("SC_CLK_TCK")


def _cpus(root: Path) -> int:
    lines = _read(root / "proc/stat").splitlines()
    return sum(line.startswith("cpu") and line[3:4].isdigit() for line in lines) or 1


def _throttle_count(root: Path) -> int:
    counts = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    return sum(int(text) for path in counts if (text := _read(path)).isdigit())


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
