"""A layer's kernels on a device, with their arrays there: run once for their result, or timed by the device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.kernels.build import is_large
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.cold import cold_bytes, copies, is_beyond_caches
from pruneaug.kernels.layers import from_memory, to_memory
from pruneaug.kernels.planes import Planes
from pruneaug.profiler.remote.session import Session, lost

LayerCalls = tuple[Planes | None, Planes | None, Sequence[KernelCall]]
"""What `pruneaug.kernels.layers.layer_calls` returns."""


class Memory:
    """What one op's kernels share on a device while a session lasts: libraries, the input, and what they write to.

    In a network a layer's input was just written, and its output's memory has held others before. Kernels with memory
    of their own would drive each other's from the caches.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._libraries: dict[Path, Any] = {}
        self._inputs: dict[Planes | None, Any] = {}
        self._outputs: dict[tuple[str, int], Any] = {}

    def library(self, path: Path) -> Any:
        """The library, loaded on the device."""
        if path not in self._libraries:
            self._libraries[path] = self.session.load(path)
        return self._libraries[path]

    def input(self, x: torch.Tensor, planes: Planes | None) -> Any:
        """The input as it lies in a network."""
        if planes not in self._inputs:
            laid = x.reshape(-1) if planes is None else to_memory(x, planes)
            self._inputs[planes] = self.session.tensor(laid.numpy())
        return self._inputs[planes]

    def output(self, use: str, size: int) -> Any:
        """The flat array for this use, of this size."""
        if (use, size) not in self._outputs:
            self._outputs[use, size] = self.session.tensor(np.zeros(size, np.float32))
        return self._outputs[use, size]


class Chain:
    """The kernels of a layer, each of which reads what the one before it wrote, bound to arrays on a device.

    Its weights are as far away at each run as in a network: see `pruneaug.kernels.cold`. Raises DeviceError,
    ConnectionLostError, as all of its methods do.
    """

    def __init__(self, memory: Memory, library: Path, x: torch.Tensor, layer: LayerCalls, weight_bytes: int) -> None:
        """`library` is that of the layer's calls; `x` the op's input; `weight_bytes` what its weights take."""
        x_planes, self._y_planes, calls = layer
        self._session = memory.session
        module = memory.library(library)
        far = cold_bytes(weight_bytes)
        flushes = is_beyond_caches(far)
        number = 1 if flushes else copies(far, sum(array.nbytes for call in calls for array in call.constants))
        outputs = [memory.output(f"result {i}", call.size) for i, call in enumerate(calls[:-1])]
        self._y = memory.output("output", calls[-1].size)
        constants = [[self._copies(array, number) for array in call.constants] for call in calls]
        arguments: list[Any] = []
        for copy in range(number):
            inputs = [memory.input(x, x_planes), *outputs]
            for x_in, own, y in zip(inputs, constants, [*outputs, self._y], strict=True):
                arguments += [x_in, *(of_one[copy % len(of_one)] for of_one in own), y]
        pairs = [pair for call, own in zip(calls, constants) for pair in zip(call.constants, own)]
        flushed = [of_one[0] for array, of_one in pairs if flushes and is_large(array)]
        layout = [number, len(calls), *(len(call.constants) + 2 for call in calls)]
        self._alive = arguments, flushed
        with lost():
            bind, self._time, self._free = (module[f"{verb}_chain"] for verb in ("bind", "time", "free"))
            self._handle = bind(self._session.tensor(np.array(layout, np.int64)), len(flushed), *flushed, *arguments)

    def _copies(self, array: npt.NDArray[Any], number: int) -> list[Any]:
        """The array on the device, so many times if it is too large to stay in the first cache."""
        first = self._session.tensor(array)
        with lost():
            return [first, *(first.copyto(self._session.cpu) for _ in range(number - 1 if is_large(array) else 0))]

    def result(self) -> torch.Tensor:
        """What the kernels compute: [tokens, out_features] or [batch, channels, height, width]."""
        with lost():
            self._y.copyfrom(np.full(self._y.shape, np.nan, np.float32))
        self.time(1)
        with lost():
            y = torch.from_numpy(self._y.numpy())
        return y[None] if self._y_planes is None else from_memory(y, self._y_planes)

    def time(self, runs: int, *, untimed: int = 0) -> npt.NDArray[np.float64]:
        """Microseconds of so many runs on the device, after others that wake its threads and fill its caches."""
        times = self._session.empty((runs,), "float64")
        with lost():
            self._time(self._handle, untimed, times)
            found: npt.NDArray[np.float64] = times.numpy()
            return found

    def free(self) -> None:
        """Release the arrays on the device; does nothing where the connection has ended."""
        with contextlib.suppress(Exception):
            self._free(self._handle)
        self._alive = [], []
