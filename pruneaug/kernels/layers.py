"""A layer alone: the kernel calls that compute one op, as a network makes them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import cycle
from typing import Any

import torch

from pruneaug.kernels.build import BoundKernel, Builder, CpuTarget, Kernel, memory
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.cold import copies, is_beyond_caches
from pruneaug.kernels.copies import phase_copy
from pruneaug.kernels.flush import can_flush, flush_call
from pruneaug.kernels.layouts import Layouts, taps
from pruneaug.kernels.planes import Planes, token_planes, view
from pruneaug.kernels.products import conv_product, token_product, vector_product
from pruneaug.kernels.variants import Variant
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import Conv2dOp, LinearOp, Op

_PLAIN = Epilogue()


class Buffers:
    """Memory that the kernels of one op share while they are timed. Safe to use from several threads.

    In a network a layer's input was just written, and its output's memory has held others before: both are in the
    caches as far as they fit. Kernels with memory of their own would drive each other's from there.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int, torch.dtype], torch.Tensor] = {}

    def get(self, use: str, size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The flat tensor for this use, of this size; its values are what was last written."""
        key = use, size, dtype
        if key not in self._kept:
            self._kept.setdefault(key, torch.zeros(size, dtype=dtype))
        return self._kept[key]


class BoundCalls:
    """Kernel calls of which each computes from what the one before it wrote; called with the memory of the input.

    With `cold_bytes` it keeps so many copies of its weights that they take about so much memory, and takes them in
    turn; or it keeps one, and has a `flush` that is to be called before each call (see `pruneaug.kernels.cold`). Its
    memory is from `buffers`: one thread at a time, and what shares them computes the same op. `launches` is the number
    of kernels that it calls, `output` what the last one writes, of `dtype`.
    """

    def __init__(
        self,
        calls: Sequence[KernelCall],
        builder: Builder,
        cold_bytes: int,
        buffers: Buffers | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        buffers = buffers or Buffers()
        self.launches = len(calls)
        size = sum(array.nbytes for call in calls for array in call.constants)
        flushes = is_beyond_caches(cold_bytes) and can_flush(builder.target)
        bound = [builder.bound_copies(call, 1 if flushes else copies(cold_bytes, size)) for call in calls]
        self._copies = cycle(list(zip(*bound)))
        self.flush = partial(_flush, *_flushing(builder, bound)) if flushes else None
        between = [buffers.get(f"result {i}", call.size) for i, call in enumerate(calls[:-1])]
        self.output = buffers.get("output", calls[-1].size, dtype)
        self._memory = [memory(buffer) for buffer in (*between, self.output)]

    def __call__(self, x: Any) -> None:
        for kernel, y in zip(next(self._copies), self._memory):
            kernel(x, y)
            x = y


def _flushing(builder: Builder, bound: Sequence[Sequence[BoundKernel]]) -> tuple[Kernel, list[Any]]:
    """A kernel that flushes an array, and the large arrays of these kernels."""
    arrays = [array for kernels in bound for kernel in kernels for array in kernel.large]
    return builder.bound(flush_call(builder.target)), [memory(array.view(torch.float32)) for array in arrays]


def _flush(kernel: Kernel, arrays: Sequence[Any]) -> None:
    for array in arrays:
        kernel(array)


class LayerKernel(BoundCalls):
    """One op with its weights, bound to kernels: calls on activations as they lie in a network."""

    def __init__(
        self,
        op: Op,
        weights: Weights,
        variant: Variant,
        builder: Builder,
        epilogue: Epilogue = _PLAIN,
        *,
        cold_bytes: int = 0,
        buffers: Buffers | None = None,
    ) -> None:
        self._x, self._y, calls = layer_calls(op, weights, variant, builder.target, epilogue)
        super().__init__(calls, builder, cold_bytes, buffers)

    def prepare(self, x: torch.Tensor) -> Any:
        """The input float32 [tokens, in_features] or [batch, channels, height, width] as it lies in a network."""
        return memory(x.reshape(-1).clone() if self._x is None else to_memory(x, self._x))

    def result(self) -> torch.Tensor:
        """What the last call computed: [tokens, out_features] or [batch, channels, height, width]."""
        return self.output[None].clone() if self._y is None else from_memory(self.output, self._y)


def layer_calls(
    op: Op, weights: Weights, variant: Variant, target: CpuTarget, epilogue: Epilogue = _PLAIN
) -> tuple[Planes | None, Planes | None, list[KernelCall]]:
    """The planes of the op's input and output (None: plain memory of one token), and the calls between them."""
    lanes = target.lanes
    if isinstance(op, LinearOp):
        if op.tokens == 1:
            return None, None, [vector_product(weights, variant, target, epilogue)]
        x, y = (token_planes(1, channels, op.tokens, lanes) for channels in (op.in_features, op.out_features))
        return x, y, [token_product(x, y, weights, variant, target, epilogue)]
    layouts = Layouts([op], lanes)
    x, y = layouts.input(op), layouts.output(op)
    if variant.positions or layouts.reads_in_place(op):
        return x, y, [conv_product(op, x, y, weights, variant, target, epilogue)]
    return x, y, copied_convolution(op, x, y, layouts, weights, variant, target, epilogue)


def copied_convolution(
    op: Conv2dOp,
    x: Planes | tuple[int, int, int, int],
    y: Planes,
    layouts: Layouts,
    weights: Weights,
    variant: Variant,
    target: CpuTarget,
    epilogue: Epilogue,
) -> list[KernelCall]:
    """A convolution that reads a copy of its input, which lies in planes or plain as [batch, channels, rows, cols]."""
    if variant.positions:
        copy = layouts.input(op)
        call = phase_copy(x, copy, ((0, 0),), (1, 1), target.lanes)
    else:
        copy = layouts.phase_images(op)
        call = phase_copy(x, copy, taps(op).phases, op.stride, target.lanes)
    return [
        call,
        conv_product(op, copy, y, weights, variant, target, epilogue),
    ]


def to_memory(x: torch.Tensor, planes: Planes) -> torch.Tensor:
    """A tensor [images, channels, rows, cols] in flat memory, or one [..., channels] in that of tokens; border zero."""
    memory = torch.zeros(planes.size)
    if not planes.zero_border:
        x = x.reshape(planes.images, 1, planes.cols, planes.channels).permute(0, 3, 1, 2)
    view(memory, planes).copy_(x)
    return memory


def from_memory(memory: torch.Tensor, planes: Planes) -> torch.Tensor:
    """What `to_memory` was given."""
    values = view(memory, planes)
    return values.clone() if planes.zero_border else values[0, :, 0].t().contiguous()
