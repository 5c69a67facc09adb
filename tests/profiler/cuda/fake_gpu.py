"""GPUs for tests, in this process or in the measuring one: `emulated` runs kernels, `faulty` fails as it is told to."""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch

from pruneaug.errors import InputError, MeasurementError
from pruneaug.kernels.cuda.driver import Driver
from pruneaug.kernels.cuda.program import Program, ProgramFolder
from pruneaug.kernels.cuda.shapes import parse_shape
from pruneaug.platforms.cuda import Gpu
from pruneaug.platforms.gpu_state import GpuState
from pruneaug.profiler.cuda.cases import subjects_of

NAME = "Fake GPU"
FAULTS = "FAKE_GPU_FAULTS"  # JSON: a part of a kernel's key -> abort, cut (a server's session), hang, poison or nothing
FIRST_US = 1000.0


def keep_empty_programs(path, group):
    """Programs whose code no fake driver reads."""
    folder = ProgramFolder(path)
    for subject in subjects_of(group, []):
        folder.write(Program(parse_shape(subject.variant), "sm_80", (("x", "pointer"),), 1, 0, b"code"))
    return folder


@dataclass
class FakeDevice:
    """Everything at once, on the CPU. The n-th time that is taken is FIRST_US + n times `step_us` microseconds."""

    driver: Driver
    l2_bytes: int = 0
    name: str = NAME
    gpu: Gpu = field(init=False)
    poisoned: bool = False
    step_us: float = 1.0
    runs_once: bool = False  # of runs that are timed again and again: emulated networks take long
    have_run: list = field(default_factory=list)
    recorded_calls: list = field(default_factory=list)
    torch_device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self):
        self.gpu = Gpu(self.name, "GPU-0", (8, 0), 108, self.l2_bytes, 1 << 30, driver="1.0", cuda="13.0")
        self.readings, self.times = count(), count()

    def stream(self):
        return 7

    def synchronize(self):
        if self.poisoned:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def recorded(self, calls):
        self.recorded_calls.append(len(calls))
        return lambda: [call() for call in calls]

    def times_us(self, runs):
        for run in runs:
            if not self.runs_once or run not in self.have_run:
                run()
        self.have_run = [*runs]
        self.synchronize()
        return [FIRST_US + self.step_us * next(self.times) for _ in runs]

    def state(self):
        return GpuState(1980.0, 2619.0, 300.0, 50.0 + next(self.readings), ("power limit",), "1.0")


class FaultyDriver:
    """Kernels that are started and compute nothing, or that do what FAULTS says of their key."""

    def __init__(self):
        self.device = None
        self._faults = json.loads(os.environ.get(FAULTS, "{}"))

    def load(self, program):
        fault = next((what for part, what in self._faults.items() if part in program.shape.key), "nothing")
        return FaultyKernel(self.device, fault)


@dataclass
class FaultyKernel:
    device: FakeDevice
    fault: str

    def bind(self, launch, arguments):
        return self

    def __call__(self, stream):
        match self.fault:
            case "abort":
                os.abort()
            case "cut":
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(600)  # the parent's death ends it
            case "hang":
                time.sleep(600)
            case "poison":
                self.device.poisoned = True
                raise MeasurementError("CUDA's driver must launch a kernel, but said CUDA_ERROR_ILLEGAL_ADDRESS")


def faulty(index=0):
    device = FakeDevice(FaultyDriver(), name=NAME if index == 0 else f"{NAME} {index}")
    device.driver.device = device
    return device


class EmulatedDriver(Driver):
    """Kernels that are run, but for those that do what FAULTS says of their key."""

    def __init__(self, api):
        super().__init__(api)
        self.faulty = FaultyDriver()

    def load(self, program):
        found = self.faulty.load(program)
        return super().load(program) if found.fault == "nothing" else found


def emulated(index=0):
    sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "cuda"))
    from fake_driver import FakeApi

    device = FakeDevice(EmulatedDriver(FakeApi()))
    device.driver.faulty.device = device
    return device


def with_networks(index=0):
    """As `emulated`, but what is timed later is faster: kernels than PyTorch's, pruned networks than dense ones.

    Whole networks run in the emulator too; torch.compile does nothing in this process.
    """
    sys.path.insert(0, str(Path(__file__).parents[2] / "runtime" / "cuda"))
    from emulated import KERNELS, Recorded

    from pruneaug.profiler import local_gpu
    from pruneaug.runtime.cuda import network

    # Nothing is compiled here: what a network needs was uploaded.
    local_gpu.compiled_programs = lambda shapes, arch, folder, *_: [folder.read(shape, arch) for shape in shapes]
    local_gpu.KERNELS = KERNELS
    local_gpu.GraphRecorder = network.GraphRecorder = Recorded
    torch.compile = lambda network, **options: network
    device = emulated(index)
    device.step_us, device.runs_once = -0.01, True
    return device


def fake_kernels(shapes, arch, folder, progress=None):
    """In the place of compiling what a folder lacks."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "kernels" / "cuda"))
    from fake_driver import fake_program

    for shape in folder.missing(shapes, arch):
        folder.write(fake_program(shape, arch))
    return set(), []


def absent(index):
    raise InputError("device 'cuda' needs a GPU that PyTorch can use, but there is none")


def broken(index):
    sys.exit("no such luck")
