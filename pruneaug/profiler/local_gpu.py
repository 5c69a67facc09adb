"""A GPU of this machine: networks with our kernels are built, timed and saved there, beside PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneaug.errors import PruneaugError
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.shapes import Shape
from pruneaug.kernels.cuda.variants import CudaVariant
from pruneaug.platforms.cuda import check_gpu
from pruneaug.platforms.gpu_state import GpuState, held_down
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.cuda.device import Device, TorchDevice
from pruneaug.profiler.cuda.programs import compiled_programs
from pruneaug.profiler.gpu_networks import GPU_RUNTIMES, GpuSubject, time_on_gpu, torch_subject
from pruneaug.profiler.network import NetworkTime, Progress, Subject
from pruneaug.runtime.cuda.building import build_graph
from pruneaug.runtime.cuda.choice import Choose, largest_that_fills
from pruneaug.runtime.cuda.network import CudaNetwork, load_cuda_network
from pruneaug.runtime.cuda.operator import KERNELS, LoadedKernels
from pruneaug.runtime.cuda.recording import GraphRecorder, Recorder
from pruneaug.runtime.plan import Plans
from pruneaug.spec.platform import KERNELS_FOLDER


class LocalGpu:
    """What networks run on: a GPU, compiled kernels, what launches them and what records graphs. Tests have others."""

    def __init__(
        self,
        index: int = 0,
        folder: str | Path = KERNELS_FOLDER,
        *,
        make_device: Callable[[int], Device] = TorchDevice,
        recorder: Recorder | None = None,
        kernels: LoadedKernels | None = None,
    ) -> None:
        """`index` is the GPU's number among those that PyTorch sees, `folder` that of the compiled kernels."""
        self._index, self._make_device = index, make_device
        self.folder = ProgramFolder(Path(folder))
        self.recorder = recorder or GraphRecorder()
        self._kernels = kernels or KERNELS
        self.timed_at: GpuState | None = None  # the worst in the last rounds

    @cached_property
    def device(self) -> Device:
        """Raises InputError if there is none."""
        return self._make_device(self._index)

    def network(
        self,
        model: nn.Module,
        inputs: Sequence[Any],
        masks: Mapping[str, torch.Tensor],
        *,
        dtype: str,
        variants: Mapping[str, CudaVariant | str] | None = None,
        choose: Choose = largest_that_fills,
        compiled: bool = True,
        progress: Progress | None = None,
    ) -> CudaNetwork:
        """A network with our kernels: see `build_graph` and `CudaNetwork`; `progress` is told of kernels to compile.

        Raises InputError, NetworkError or CompileError for what cannot be built.
        """
        arch = self.device.gpu.arch
        built = build_graph(
            model, inputs, masks, dtype=dtype, arch=arch, device=self.device.torch_device, choose=choose,
            variants=variants,
        )  # fmt: skip
        programs = compiled_programs(built.shapes, arch, self.folder, progress)
        return CudaNetwork(built, programs, compiled=compiled, recorder=self.recorder, kernels=self._kernels)

    def load(self, path: str | Path) -> CudaNetwork:
        """The network that `CudaNetwork.save` wrote, on this GPU. Raises CheckpointError: see `load_cuda_network`."""
        device = self.device
        return load_cuda_network(
            path, device.gpu.arch, device.torch_device, recorder=self.recorder, kernels=self._kernels
        )

    def time(
        self, subjects: Sequence[Subject], platform: Platform, *, rounds: int, progress: Progress | None = None
    ) -> tuple[NetworkTime, ...]:
        """Time subjects in turns in the platform's dtype: networks of PyTorch's by the names of GPU_RUNTIMES, all
        others with our kernels as their plans say.

        See `GpuNetworks.time`. Raises DeviceError if the GPU is not that of the platform, InputError without one.
        """
        check_gpu(platform, self.device.gpu)
        return GpuNetworks.of(subjects, platform.dtype, rounds).time(self, progress)

    def warnings(self) -> tuple[str, ...]:
        """Whether something held the clocks down when networks were timed last."""
        return clock_warnings(self.timed_at)


def clock_warnings(state: GpuState | None) -> tuple[str, ...]:
    """A warning if something held the clocks down."""
    reasons = held_down(None if state is None else state.held_down_by)
    told = f"clocks were held down by {', '.join(reasons)}; ratios within a run still compare"
    return (told,) if reasons else ()


@dataclass(frozen=True, slots=True)
class GpuNetwork:
    """What a GPU's process needs to know of a `Subject`."""

    runtime: str
    model: nn.Module
    plans: Plans
    masks: Mapping[str, torch.Tensor]
    save_to: Path | None


@dataclass(frozen=True, slots=True)
class GpuNetworks:
    """Networks to be timed in turns, on the same inputs and in the same dtype."""

    networks: tuple[GpuNetwork, ...]
    inputs: tuple[Any, ...]
    dtype: str
    rounds: int

    @classmethod
    def of(cls, subjects: Sequence[Subject], dtype: str, rounds: int) -> GpuNetworks:
        """Those of the subjects, whose inputs are the first one's."""
        networks = [GpuNetwork(s.runtime, s.model, s.plans, s.masks, s.save_to) for s in subjects]
        return cls(tuple(networks), tuple(subjects[0].program.example_inputs[0]), dtype, rounds)

    def time(self, gpu: LocalGpu, progress: Progress | None = None) -> tuple[NetworkTime, ...]:
        """As `time_networks`, by the GPU's clock: what fails becomes a result with an error and is not saved."""
        subjects = [self._subject(network, gpu) for network in self.networks]
        times, state = time_on_gpu(subjects, self.inputs, self.dtype, gpu.device, rounds=self.rounds, progress=progress)
        gpu.timed_at = state or gpu.timed_at
        return times

    def shapes(self, arch: str) -> list[Shape]:
        """The kernels that our networks run on GPUs of an architecture; a network that cannot be built has none."""
        shapes: dict[Shape, None] = {}
        for network in self.networks:
            if network.runtime in GPU_RUNTIMES:
                continue
            with suppress(PruneaugError, RuntimeError):  # which it will raise where it is timed
                built = build_graph(
                    network.model, self.inputs, network.masks, dtype=self.dtype, arch=arch, device=torch.device("cpu"),
                    variants=network.plans,
                )  # fmt: skip
                shapes |= dict.fromkeys(built.shapes)
        return list(shapes)

    def _subject(self, network: GpuNetwork, gpu: LocalGpu) -> GpuSubject:
        model, inputs, dtype = network.model, self.inputs, self.dtype
        if network.runtime in GPU_RUNTIMES:
            return torch_subject(network.runtime, model, inputs, dtype, gpu.device.torch_device, gpu.recorder)

        def build() -> CudaNetwork:
            return gpu.network(model, inputs, network.masks, dtype=dtype, variants=network.plans)

        return own_subject(network.runtime, model, inputs, build, network.save_to)


def own_subject(
    runtime: str,
    model: nn.Module,
    inputs: Sequence[Any],
    build: Callable[[], CudaNetwork],
    save_to: Path | None = None,
) -> GpuSubject:
    """A network with our kernels, which is built when it is its turn and saved to a file when it is right; `model` is
    what it computes."""
    built: list[CudaNetwork] = []

    def make() -> Callable[[], Any]:
        built.append(build())
        built[0](*inputs)
        return built[0].replay

    return GpuSubject(runtime, model, make, None if save_to is None else lambda: built[0].save(save_to))
