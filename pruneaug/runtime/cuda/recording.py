"""A network's calls as one CUDA graph, so that starting its kernels costs no Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

Call = Callable[[], Any]
_WARM_UP = 3  # calls: kernels are loaded, libraries choose theirs, and compilers compile


class Recorder(Protocol):
    """Makes a call that reads and writes always the same memory cheap to repeat."""

    def record(self, call: Call) -> tuple[Call, Any]:
        """What repeats the call, and the call's result, whose tensors each repetition overwrites."""
        ...


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
        return graph.replay, result
