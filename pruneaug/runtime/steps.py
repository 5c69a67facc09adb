"""What a compiled network does: steps that read buffers and write new ones, in the order of execution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.kernels.call import KernelCall


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """Memory that one step writes: `size` values of a dtype. What they mean is the compiler's business."""

    size: int
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True, slots=True, eq=False)
class Literal:
    """A constant that a step reads as if it were a buffer."""

    values: npt.NDArray[Any]

    @property
    def size(self) -> int:
        return int(self.values.size)

    @property
    def dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.values.dtype)).dtype


Source = Buffer | Literal


@dataclass(frozen=True, slots=True, eq=False)
class KernelStep:
    """One of our kernels. `origin` names what it computes: a layer, or an operator of the graph."""

    call: KernelCall
    inputs: tuple[Source, ...]
    output: Buffer
    origin: str


@dataclass(frozen=True, slots=True, eq=False)
class RegionStep:
    """Operators that have no kernel of ours: a function of plain tensors, compiled by TVM's own means.

    `modules` are the paths of the modules whose `forward` calls them, but for the network itself.
    """

    region: Any  # pruneaug.runtime.fallback.Region
    inputs: tuple[tuple[Source, tuple[int, ...]], ...]  # each with its shape
    outputs: tuple[Buffer, ...]
    origin: str
    modules: tuple[str, ...] = ()


Step = KernelStep | RegionStep


@dataclass(slots=True)
class Steps:
    """A network as steps. `inputs` are its tensors, each with shape; `outputs` alike, in plain memory."""

    inputs: list[tuple[Buffer, tuple[int, ...]]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    outputs: list[tuple[Source, tuple[int, ...]]] = field(default_factory=list)
