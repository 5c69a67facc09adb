"""A kernel with everything but its inputs: what a network's runtime calls, and what a profiler times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class KernelCall:
    """A TIR function, the constant arrays that it reads, and the size of what it writes.

    The function takes flat arrays: the inputs of the call, then the constants, then the output (float32 [`size`]).
    It writes every value of the output that anything may read, the border of zeros included.
    """

    name: str  # what it computes, as a report shows it
    function: Any  # tvm.tirx.PrimFunc; generators are cached, so calls of equal kernels share it
    constants: tuple[npt.NDArray[Any], ...]
    size: int
