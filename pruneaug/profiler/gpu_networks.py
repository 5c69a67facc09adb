"""Whole networks on a GPU in turns, timed on the GPU's clock; each is checked before it is timed.

All run in one process: a kernel that reads a wrong address ends it, and every network behind it becomes an error.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pruneaug.errors import InputError, MeasurementError, PruneaugError
from pruneaug.kernels.cuda.formats import FORMATS, TF32
from pruneaug.platforms.gpu_state import GpuState, watched
from pruneaug.profiler.cuda.device import Device, Run
from pruneaug.profiler.network import NetworkTime, network_time
from pruneaug.profiler.network_worker import relative_distance, tensors_of
from pruneaug.profiler.runtimes import why_absent
from pruneaug.registry import did_you_mean
from pruneaug.runtime.cuda.building import channels_last
from pruneaug.runtime.cuda.recording import Recorder, network_settings

TORCH, TORCH_COMPILE, TENSORRT = "torch", "torch-compile", "tensorrt"
GPU_PACKAGES: Mapping[str, Sequence[str]] = {TORCH: (), TORCH_COMPILE: (), TENSORRT: ("torch_tensorrt",)}
"""The runtimes, and the packages that each needs beside PyTorch: PyTorch's operators, TorchInductor with constant
weights, and TensorRT by way of torch.compile, which leaves PyTorch what it cannot do; all in CUDA graphs."""
GPU_RUNTIMES = tuple(GPU_PACKAGES)
LARGEST_ERRORS: Mapping[str, float] = {"float16": 2e-2, "bfloat16": 1e-1, "tf32": 2e-2, "float32": 1e-3}
"""norm(difference) / norm(expected) against float64; rounding adds up over the layers, a wrong kernel is far above."""

_RUN_US = 1000.0  # what is timed at once, at least: the events around it cost some microseconds
_PER_ROUND = 8  # times that each network is timed in a round


@dataclass(frozen=True, slots=True)
class GpuSubject:
    """A network by the name of its runtime: `make` gives a call that computes it on the GPU and returns the outputs.

    `model` is what it computes, for the reference in float64. `save` is called when its outputs are right.
    """

    runtime: str
    model: nn.Module
    make: Callable[[], Callable[[], Any]]
    save: Callable[[], None] | None = None


def check_gpu_runtimes(names: Sequence[str]) -> None:
    """Raises InputError for a name that is not in GPU_RUNTIMES."""
    if unknown := [name for name in names if name not in GPU_RUNTIMES]:
        raise InputError(
            f"`against` must name runtimes of {', '.join(GPU_RUNTIMES)} on a GPU, but got {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], GPU_RUNTIMES)}"
        )


def absent_gpu_packages(name: str) -> str | None:
    """Why a runtime of GPU_RUNTIMES cannot run here, and how to install it; None if it can."""
    return why_absent(GPU_PACKAGES[name], "torch-tensorrt")


def torch_subject(
    runtime: str, model: nn.Module, inputs: Sequence[Any], dtype: str, device: torch.device, recorder: Recorder
) -> GpuSubject:
    """A network of PyTorch's in a runtime of GPU_RUNTIMES, its weights and activations in `dtype`."""

    def make() -> Callable[[], Any]:
        held = FORMATS[dtype].torch_dtype
        network: Any = copy.deepcopy(model).to(device, held).eval()
        images = any(isinstance(module, nn.Conv2d) for module in network.modules())
        if images:
            network = network.to(memory_format=torch.channels_last)
        given = pytree.tree_map_only(
            torch.Tensor,
            lambda x: channels_last(x.to(device, held if x.is_floating_point() else None), images),
            tuple(inputs),
        )
        if runtime == TORCH_COMPILE:
            network = torch.compile(network, dynamic=False)
        elif runtime == TENSORRT:
            import_module(*GPU_PACKAGES[TENSORRT])  # which makes its backend known
            network = torch.compile(network, backend="torch_tensorrt", dynamic=False, options=_tensorrt(dtype))
        with network_settings(dtype):
            again, results = recorder.record(lambda: network(*given))

        def call() -> Any:
            again()
            return results

        return call

    return GpuSubject(runtime, model, make)


@torch.no_grad()
def time_on_gpu(
    subjects: Sequence[GpuSubject],
    inputs: Sequence[Any],
    dtype: str,
    device: Device,
    *,
    rounds: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[tuple[NetworkTime, ...], GpuState | None]:
    """Time the subjects in turns, `rounds` times some calls of each; the order is that of the subjects.

    Returns with the times what the GPU did in the rounds, at its worst; None if there were none.
    One that fails, or whose outputs are too far from float64, becomes a result with an error and is not saved; all do
    if the GPU fails in a round. Without rounds they are only compiled, checked and saved.
    """
    expected: dict[int, list[torch.Tensor]] = {}
    results, ready = [], {}
    for index, subject in enumerate(subjects):
        if progress is not None:
            progress(index, len(subjects) + rounds, f"compiling for {subject.runtime}")
        accuracy: float | None = None
        error: str | None = None
        try:
            if id(subject.model) not in expected:
                expected[id(subject.model)] = _expected(subject.model, inputs, device)
            call = subject.make()
            accuracy = relative_distance(tensors_of(call()), expected[id(subject.model)])
            if not accuracy <= LARGEST_ERRORS[dtype]:  # NaN is not
                raise MeasurementError(
                    f"its outputs' relative error in {dtype} must be at most {LARGEST_ERRORS[dtype]:g}, but is "
                    f"{accuracy:g}; please report it"
                )
            ready[index] = _repeated(call, device)
        except Exception as failure:  # compilers raise what they like
            error = f"{type(failure).__name__}: {failure}"
        unsaved = None if subject.save is None else error or _unsaved(subject.save)
        results.append(replace(network_time(subject.runtime, [], accuracy, error), save_error=unsaved))
    if not ready or not rounds:
        return tuple(results), None

    def told(done: int) -> None:
        if progress is not None:
            progress(len(subjects) + done, len(subjects) + rounds, "measuring")

    with watched(device.state) as worst:
        times_us, stopped = _in_turns(ready, device, rounds, told)
    for index, times in times_us.items():
        found = results[index]
        measured = network_time(found.runtime, times, found.max_relative_error, stopped)
        results[index] = replace(measured, save_error=found.save_error)
    return tuple(results), worst()


def _in_turns(
    ready: Mapping[int, tuple[Run, int]], device: Device, rounds: int, told: Callable[[int], None]
) -> tuple[dict[int, list[float]], str | None]:
    """Microseconds of a call of each, and why the rounds have ended early if they have."""
    times_us: dict[int, list[float]] = {index: [] for index in ready}
    runs = [run for run, _ in ready.values()]
    for done in range(rounds):
        told(done)
        try:
            turns = [device.times_us(runs) for _ in range(_PER_ROUND)]
        except RuntimeError as failure:  # of a kernel of any of them: the GPU takes no more from this process
            return times_us, f"the GPU failed while all networks were timed: {type(failure).__name__}: {failure}"
        for turn in turns:
            for (index, (_, calls)), us in zip(ready.items(), turn, strict=True):
                times_us[index].append(us / calls)
    return times_us, None


def _expected(model: nn.Module, inputs: Sequence[Any], device: Device) -> list[torch.Tensor]:
    """What the network returns in float64."""
    exact = copy.deepcopy(model).to(device.torch_device).double().eval()
    given = pytree.tree_map_only(
        torch.Tensor,
        lambda x: x.to(device.torch_device, torch.float64 if x.is_floating_point() else None),
        tuple(inputs),
    )
    return tensors_of(exact(*given))


def _tensorrt(dtype: str) -> dict[str, Any]:
    """Each operator in the dtype that it has in the network, as in the other runtimes."""
    return {"use_explicit_typing": True, "truncate_double": True, "disable_tf32": dtype != TF32.name}


def _unsaved(save: Callable[[], None]) -> str | None:
    """Why it could not be saved; None if it was."""
    try:
        save()
    except PruneaugError as error:
        return str(error)
    return None


def _repeated(call: Run, device: Device) -> tuple[Run, int]:
    """A call so many times that it takes long enough to be timed, and how many times that is."""
    (us,) = device.times_us([call])
    calls = max(1, math.ceil(_RUN_US / max(us, 1.0)))
    return (lambda: [call() for _ in range(calls)]), calls
