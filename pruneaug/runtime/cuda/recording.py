"""A network's calls as one CUDA graph, so that starting its kernels costs no Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.backends import cudnn

from pruneaug.kernels.cuda.formats import TF32

Call = Callable[[], Any]
_WARM_UP = 3  # calls: kernels are loaded, libraries choose theirs, and compilers compile


def use_fastest(dtype: str) -> None:
    """Let PyTorch round float32 to tf32 if that is the dtype, and take cuDNN's fastest algorithms."""
    torch.set_float32_matmul_precision("high" if dtype == TF32.name else "highest")
    cudnn.allow_tf32 = dtype == TF32.name
    cudnn.benchmark = True  # a first call tries its algorithms, the others take the fastest


@contextmanager
def network_settings(dtype: str) -> Iterator[None]:
    """PyTorch's settings while a network in this dtype is compiled and recorded, the same for all networks.

    Those of `use_fastest`, and weights are constants to TorchInductor, which may lay them out anew.
    """
    # Here and not among the options of torch.compile: these come too late for Dynamo, which makes weights constants.
    from torch._inductor import config

    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    try:
        use_fastest(dtype)
        with config.patch(freezing=True):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:]


class Recorder(Protocol):
    """Makes a call that reads and writes always the same memory cheap to repeat."""

    def record(self, call: Call) -> tuple[Call, Any]:
        """What repeats the call, and the call's result, whose tensors each repetition overwrites."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """Repeats what a graph has recorded. A graph knows addresses only: `held` keeps alive what lies there."""

    graph: torch.cuda.CUDAGraph
    held: object

    def __call__(self) -> None:
        self.graph.replay()


class GraphRecorder:
    """Records on the current GPU."""

    def record(self, call: Call) -> tuple[Call, Any]:
        """Calls it some times on a stream of its own first, as PyTorch asks for; raises what that raises."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                call()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        return Replay(graph, call), result
