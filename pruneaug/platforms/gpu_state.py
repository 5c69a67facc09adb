"""What an NVIDIA GPU is doing: clocks, power, temperature, what holds its clocks down. It is read, never changed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Event, Thread
from typing import Any, TypeVar

_TIMEOUT_S = 20
_PERIOD_S = 0.1  # between two readings
_STATE = (
    "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_event_reasons.active", "driver_version",
)  # fmt: skip
_LIMITS = ("clocks.max.sm", "clocks.max.mem", "enforced.power.limit")
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
Reading = TypeVar("Reading")


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


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """How far clocks and power may rise; what the driver does not tell is None."""

    sm_mhz: float | None
    memory_mhz: float | None
    power_w: float | None


def gpu_state(gpu: str) -> GpuState:
    """Of the GPU with this UUID ("GPU-..."), by NVML if the package nvidia-ml-py is there, else by nvidia-smi."""
    return _by_nvml(gpu, _state_by_nvml) or _state_by_smi(gpu)


def gpu_limits(gpu: str) -> GpuLimits:
    """Of the GPU with this UUID, asked for as `gpu_state` asks."""
    return _by_nvml(gpu, _limits_by_nvml) or GpuLimits(*map(_number, _by_smi(gpu, _LIMITS)))


@contextmanager
def watched(read: Callable[[], GpuState]) -> Iterator[Callable[[], GpuState]]:
    """Read at once and then again and again, in a thread, while the block runs.

    After the block, what it gives is the worst of all readings: see `worst`. A GPU that waits shows nothing of what
    holds it down at work.
    """
    readings: list[GpuState] = []
    over = Event()

    def watch() -> None:
        while True:
            readings.append(read())
            if over.wait(_PERIOD_S):
                return

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: worst(readings)
    finally:
        over.set()
        thread.join()


def worst(readings: Sequence[GpuState]) -> GpuState:
    """The lowest clocks, the highest power and temperature, and all that held the clocks down, of some readings."""

    def known(values: Iterable[Any]) -> list[Any]:
        return [value for value in values if value is not None]

    reasons = known(state.held_down_by for state in readings)
    return GpuState(
        min(known(state.sm_mhz for state in readings), default=None),
        min(known(state.memory_mhz for state in readings), default=None),
        max(known(state.power_w for state in readings), default=None),
        max(known(state.temperature_c for state in readings), default=None),
        tuple(dict.fromkeys(reason for some in reasons for reason in some)) if reasons else None,
        next(iter(known(state.driver for state in readings)), None),
    )


def held_down(reasons: Sequence[str] | None) -> tuple[str, ...]:
    """Those of `GpuState.held_down_by` that make times longer: idleness does not."""
    return tuple(reason for reason in reasons or () if reason not in _HARMLESS)


def _by_nvml(gpu: str, read: Callable[[Any, Any], Reading]) -> Reading | None:
    """What `read` reads of a GPU by NVML and its handle; None if NVML does not tell."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        try:
            return read(pynvml, pynvml.nvmlDeviceGetHandleByUUID(gpu))
        finally:
            pynvml.nvmlShutdown()
    except (pynvml.NVMLError, AttributeError):  # no answer, or another version of the package
        return None


def _state_by_nvml(nvml: Any, handle: Any) -> GpuState:
    return GpuState(
        float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        _reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        str(nvml.nvmlSystemGetDriverVersion()),
    )


def _limits_by_nvml(nvml: Any, handle: Any) -> GpuLimits:
    return GpuLimits(
        float(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        float(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
    )


def _state_by_smi(gpu: str) -> GpuState:
    sm, memory, power, temperature, active, driver = _by_smi(gpu, _STATE)
    bits = active.removeprefix("0x")
    reasons = _reasons(int(bits, 16)) if bits and set(bits.lower()) <= set("0123456789abcdef") else None
    return GpuState(_number(sm), _number(memory), _number(power), _number(temperature), reasons, driver or None)


def _by_smi(gpu: str, fields: tuple[str, ...]) -> list[str]:
    """The values of these fields by nvidia-smi; empty texts if it does not tell."""
    command = ["nvidia-smi", f"--id={gpu}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    nothing = [""] * len(fields)
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return nothing
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    return nothing if answer.returncode or len(values) != len(fields) else values


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(reason for bit, reason in _REASONS.items() if bits & bit)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # "[N/A]"
