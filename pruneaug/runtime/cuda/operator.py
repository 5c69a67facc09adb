"""The PyTorch operator `pruneaug::block_sparse`: one launch of a block-sparse kernel with everything it needs.

Its arguments hold the packed weights and the sizes, so a graph that calls it can be traced with fake tensors, compiled
around it, recorded and stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

from pruneaug.errors import InputError
from pruneaug.kernels.cuda.driver import Argument, Driver, Kernel
from pruneaug.kernels.cuda.formats import PIECE
from pruneaug.kernels.cuda.program import Program
from pruneaug.kernels.cuda.shapes import ImageScalars, Scalars, Shape, launch_of, parse_shape

_CLAMP = ("low", "high")
_shape_of = lru_cache(maxsize=None)(parse_shape)


def _current_stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


class LoadedKernels:
    """Compiled kernels by the keys of their shapes, each put on the current GPU when it is first launched."""

    def __init__(self, make_driver: Callable[[], Driver] = Driver, stream: Callable[[], int] = _current_stream) -> None:
        """`stream` gives the handle of the stream on which PyTorch works now."""
        self._make_driver, self._stream = make_driver, stream
        self._driver: Driver | None = None
        self._programs: dict[str, Program] = {}
        self._loaded: dict[str, Kernel] = {}

    def add(self, programs: Iterable[Program]) -> None:
        """Let networks launch these, all for the GPU of this process and by this version of the package."""
        for program in programs:
            self._programs.setdefault(program.shape.key, program)

    def launch(self, shape: Shape, scalars: Scalars | ImageScalars, arguments: Mapping[str, Argument]) -> None:
        """Start a kernel on PyTorch's current stream. Raises InputError for one that was not added, MeasurementError.

        The first launch of a kernel loads it, which no CUDA graph records.
        """
        if shape.key not in self._loaded:
            if shape.key not in self._programs:
                raise InputError(
                    f"the kernel {shape.key} must be compiled in this process or come from a file, but it is unknown; "
                    "build the network here, or load it by `pruneaug.load`"
                )
            if self._driver is None:
                self._driver = self._make_driver()
            self._loaded[shape.key] = self._driver.load(self._programs[shape.key])
        self._loaded[shape.key].bind(launch_of(shape, scalars), arguments)(self._stream())


KERNELS = LoadedKernels()
"""Those of this process."""


@torch.library.custom_op("pruneaug::block_sparse", mutates_args=(), device_types="cuda")
def block_sparse(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    constants: Sequence[torch.Tensor],
    kernel: str,
    sizes: Sequence[int],
    clamp: Sequence[float],
) -> torch.Tensor:
    """clamp(activation(X Wᵀ + bias + residual)) of a linear layer or, with the channels last, of a convolution.

    x [..., in features], or images [batch, height, width, in channels]; residual like the result; `constants` as
    `CudaCall.constants` has them, in that order; `kernel` the key of a shape; `sizes` as `sizes_of` gives them. The
    result is a contiguous tensor [..., out features] or [batch, out height, out width, out channels].
    """
    return compute(KERNELS, x, residual, constants, kernel, sizes, clamp)


@block_sparse.register_fake
def _(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    constants: Sequence[torch.Tensor],
    kernel: str,
    sizes: Sequence[int],
    clamp: Sequence[float],
) -> torch.Tensor:
    return x.new_empty(_result_shape(x, scalars_of(_shape_of(kernel), sizes, clamp)))


def compute(
    kernels: LoadedKernels,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    constants: Sequence[torch.Tensor],
    kernel: str,
    sizes: Sequence[int],
    clamp: Sequence[float],
) -> torch.Tensor:
    """`block_sparse` by these kernels."""
    shape = _shape_of(kernel)
    scalars = scalars_of(shape, sizes, clamp)
    y = x.new_empty(scalars.tokens, scalars.y_stride)
    names = ("weight", "tap" if shape.image else "offset", "indptr", "bias")
    arguments = {"x": _rows(x, scalars.x_stride), "y": y, **dict(zip(names, constants, strict=True))}
    if residual is not None:
        arguments["residual"] = _rows(residual, scalars.y_stride)
    kernels.launch(shape, scalars, {**arguments, **scalars._asdict()})
    return y[:, : scalars.outputs].reshape(_result_shape(x, scalars)).contiguous()


def sizes_of(scalars: Scalars | ImageScalars) -> list[int]:
    """The arguments of a kernel that are whole numbers, in their order."""
    return [int(value) for name, value in scalars._asdict().items() if name not in _CLAMP]


def scalars_of(shape: Shape, sizes: Sequence[int], clamp: Sequence[float]) -> Scalars | ImageScalars:
    """What `sizes_of` was made of, with the clamp (low, high)."""
    kind = ImageScalars if shape.image else Scalars
    names = [name for name in kind._fields if name not in _CLAMP]
    return kind(**dict(zip(names, sizes, strict=True)), **dict(zip(_CLAMP, clamp, strict=True)))


def _result_shape(x: torch.Tensor, scalars: Scalars | ImageScalars) -> tuple[int, ...]:
    if isinstance(scalars, ImageScalars):
        width = scalars.out_width
        return scalars.tokens // scalars.out_positions, scalars.out_positions // width, width, scalars.outputs
    return *x.shape[:-1], scalars.outputs


def _rows(values: torch.Tensor, stride: int) -> torch.Tensor:
    """Values [..., n] as contiguous rows [rows, stride] that begin at a multiple of 16 bytes; a view if they do."""
    rows = values.reshape(-1, values.shape[-1])
    if rows.shape[1] != stride:
        return F.pad(rows, (0, stride - rows.shape[1]))
    rows = rows.contiguous()
    return rows if rows.data_ptr() % PIECE == 0 else rows.clone()
