"""What an NVIDIA GPU is doing: clocks, power, temperature, what holds its clocks down. It is read, never changed."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_TIMEOUT_S = 20
_FIELDS = "clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active,driver_version"
_REASONS: Mapping[int, str] = {  # bits of NVML's nvmlClocksEventReasons
    0x1: "idle",
    0x2: "clocks set by an application",
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "clocks shared with other GPUs",
    0x20: "temperature, by the driver",
    0x40: "temperature, by the hardware",
    0x80: "power brake",
    0x100: "clocks set for a display",
}
_HARMLESS = frozenset({"idle"})


@dataclass(frozen=True, slots=True)
class GpuState:
    """One reading; what the driver does not tell is None."""

    sm_mhz: float | None
    memory_mhz: float | None
    power_w: float | None
    temperature_c: float | None
    held_down_by: tuple[str, ...] | None
    driver: str | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "held_down_by": None if self.held_down_by is None else list(self.held_down_by)}


_UNKNOWN = GpuState(None, None, None, None, None, None)


def gpu_state(gpu: str) -> GpuState:
    """Of the GPU with this UUID ("GPU-..."), by NVML if the package nvidia-ml-py is there, else by nvidia-smi."""
    try:
        import pynvml
    except ImportError:
        return _by_smi(gpu)
    try:
        return _by_nvml(pynvml, gpu)
    except (pynvml.NVMLError, AttributeError):  # no answer, or another version of the package
        return _by_smi(gpu)


def held_down(reasons: Sequence[str] | None) -> tuple[str, ...]:
    """Those of `GpuState.held_down_by` that make times longer: idleness does not."""
    return tuple(reason for reason in reasons or () if reason not in _HARMLESS)


def _by_nvml(nvml: Any, gpu: str) -> GpuState:
    nvml.nvmlInit()
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(gpu)
        return GpuState(
            float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            _reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            str(nvml.nvmlSystemGetDriverVersion()),
        )
    finally:
        nvml.nvmlShutdown()


def _by_smi(gpu: str) -> GpuState:
    command = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return _UNKNOWN
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    if answer.returncode or len(values) != len(_FIELDS.split(",")):
        return _UNKNOWN
    sm, memory, power, temperature = map(_number, values[:4])
    bits = values[4].removeprefix("0x")
    reasons = _reasons(int(bits, 16)) if bits and set(bits.lower()) <= set("0123456789abcdef") else None
    return GpuState(sm, memory, power, temperature, reasons, values[5])


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(reason for bit, reason in _REASONS.items() if bits & bit)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # "[N/A]"
