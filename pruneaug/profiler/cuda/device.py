"""The GPU as the measuring process uses it: launches, clocks of the GPU itself, and its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from pruneaug.kernels.cuda.driver import Driver
from pruneaug.platforms.cuda import Gpu, detect_gpu
from pruneaug.platforms.gpu_state import GpuState, gpu_state
from pruneaug.runtime.cuda.recording import Replay

Run = Callable[[], Any]


class Device(Protocol):
    """A GPU. All is done in the order of one stream; an error in a kernel shows at the latest in `synchronize`."""

    @property
    def gpu(self) -> Gpu: ...

    @property
    def torch_device(self) -> torch.device: ...

    @property
    def driver(self) -> Driver: ...

    def stream(self) -> int:
        """The handle of the stream on which kernels are started now."""
        ...

    def synchronize(self) -> None:
        """Wait until all is done. Raises RuntimeError if a kernel has failed: the process is then of no more use."""
        ...

    def recorded(self, calls: Sequence[Run]) -> Run:
        """All calls as one, which starts their kernels right after each other, without Python in between.

        It holds the calls: kernels read and write the memory that is theirs.
        """
        ...

    def times_us(self, runs: Sequence[Run]) -> list[float]:
        """Microseconds that the GPU takes for each of the runs, one after the other."""
        ...

    def state(self) -> GpuState:
        """Its clocks and what holds them down, now."""
        ...


class TorchDevice:
    """The GPU of this number among those that PyTorch sees.

    Raises InputError if there is none, or no driver to launch kernels by.
    """

    def __init__(self, index: int) -> None:
        self._gpu = detect_gpu(index)
        self._device = torch.device("cuda", index)
        torch.cuda.set_device(self._device)  # graphs and events are made on the current one
        torch.zeros(1, device=self._device)  # makes the context, in which the driver launches
        self._driver = Driver()

    @property
    def gpu(self) -> Gpu:
        return self._gpu

    @property
    def torch_device(self) -> torch.device:
        return self._device

    @property
    def driver(self) -> Driver:
        return self._driver

    def stream(self) -> int:
        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def recorded(self, calls: Sequence[Run]) -> Run:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return Replay(graph, tuple(calls))

    def times_us(self, runs: Sequence[Run]) -> list[float]:
        events = [(_event(), _event()) for _ in runs]
        runs[0]()  # while it runs, the next ones are queued
        for run, (start, end) in zip(runs, events, strict=True):
            start.record()
            run()
            end.record()
        self.synchronize()
        return [start.elapsed_time(end) * 1e3 for start, end in events]

    def state(self) -> GpuState:
        return gpu_state(self._gpu.uuid)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
