"""Subjects as calls on the GPU, with copies of the weights in turn.

In a network the layer before has just written what a layer reads, and other layers have driven its weights from the
second-level cache. So all subjects of a group read one input and write to memory that is used again and again, and a
subject's launches take copies of its weights in turn, as many as make it touch twice that cache before the first comes
again. Layers whose inputs and outputs alone are as large need one copy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from pruneaug.errors import InputError
from pruneaug.kernels.cuda.convolutions import conv_product
from pruneaug.kernels.cuda.products import CudaCall, linear_product
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.shapes import ROWS, launch_of, parse_shape
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.cuda.variants import TORCH
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import Conv2dOp, Op
from pruneaug.profiler.cuda.cases import DENSE, Group, Subject, positions_of
from pruneaug.profiler.cuda.data import GroupData, as_input, by_position, two_of_four
from pruneaug.profiler.cuda.device import Device, Run
from pruneaug.profiler.op_data import layer_output, layer_weight
from pruneaug.runtime.cuda.recording import use_fastest
from pruneaug.runtime.cuda.semi_structured import call_now, compress, fastest_algorithm, product

_MOST_COPIES = 4096  # of weights so small that twice the cache holds more
_CACHES = 2  # times the second-level cache


@dataclass(frozen=True, slots=True, eq=False)
class SubjectCalls:
    """One launch for each copy of the weights, and what the last one has computed."""

    calls: tuple[Run, ...]
    result: Callable[[], torch.Tensor]  # [tokens, N] or [output positions, N]
    forget: Callable[[], object]  # overwrites the result
    matrix: torch.Tensor | None = None  # [N, K] if it is not the group's
    may_refuse: bool = False  # to be recorded in a graph

    def relative_error(self, data: GroupData) -> float:
        """Of what the last call has computed. Raises MeasurementError."""
        return data.relative_error(self.result(), self.matrix)


def packed(group: Group, subject: Subject, weights: Weights, arch: str) -> CudaCall:
    """The arrays of one of our kernels, from weights in the memory of the CPU. Safe to use from several threads.

    Raises CompileError for a layer that the kernel does not compute.
    """
    op, shape, target = group.op, parse_shape(subject.variant), CudaTarget(arch)
    if isinstance(op, Conv2dOp):
        return conv_product(op, weights, group.block_cols, shape.variant, shape.form, target, Epilogue())
    return linear_product(op, weights, group.block_cols, shape.variant, shape.form, shape.layout, target, Epilogue())


def kernel_calls(call: CudaCall, data: GroupData, folder: ProgramFolder, device: Device) -> SubjectCalls:
    """One of our kernels. Raises CompileError if the folder lacks it, MeasurementError if the GPU does not take it."""
    kernel = device.driver.load(folder.read(call.shape, device.gpu.arch))
    scalars, by_token = call.scalars, call.shape.layout == ROWS
    x, y = data.input(not by_token, scalars.x_stride), data.buffer(call.y_size)
    constants = {name: _on(device, array) for name, array in call.constants.items()}
    launch = launch_of(call.shape, scalars)
    calls = []
    for copy in _copies(constants, x.nbytes + y.nbytes, device):
        bound = kernel.bind(launch, {"x": x, "y": y, **copy, **scalars._asdict()})
        calls.append(lambda bound=bound: bound(device.stream()))
    values = scalars.outputs if by_token else scalars.tokens
    rows = y.view(-1, scalars.y_stride)[:, :values]
    return SubjectCalls(tuple(calls), lambda: rows if by_token else rows.t(), lambda: y.fill_(float("nan")))


def library_calls(group: Group, subject: Subject, data: GroupData, device: Device) -> SubjectCalls:
    """PyTorch's layer, or its product of a 2:4 weight as a network computes it.

    Raises InputError, CompileError for a layer that its semi-structured weights do not fit.
    """
    use_fastest(group.dtype)
    op, x = group.op, as_input(group.op, data.x)
    if subject.library == TORCH:
        weight = _dense_copy(layer_weight(op, data.matrix))
        return _layer(op, lambda weight: layer_output(op, x, weight, data.bias), weight, data, device)
    if op.matrix_shape[1] % 4:
        raise InputError(f"2:4 needs in_features that 4 divides, but got {op.key}; leave {subject} out")
    matrix = two_of_four(data.matrix) if group.pattern == DENSE else None
    weight = compress(layer_weight(op, data.matrix if matrix is None else matrix))
    algorithm = fastest_algorithm(weight, x.shape, data.bias)
    return _layer(
        op, lambda weight: product(call_now, x, x.shape, weight, data.bias, algorithm), weight, data, device,
        matrix=matrix, may_refuse=True,
    )  # fmt: skip


def _layer(
    op: Op,
    compute: Callable[[torch.Tensor], torch.Tensor],
    weight: torch.Tensor,
    data: GroupData,
    device: Device,
    matrix: torch.Tensor | None = None,
    may_refuse: bool = False,
) -> SubjectCalls:
    """What PyTorch computes with copies of a weight in turn; see `SubjectCalls`."""
    last: list[torch.Tensor] = []

    def call(weight: torch.Tensor) -> None:
        last[:] = [compute(weight)]

    outputs = positions_of(op) * op.matrix_shape[0] * data.matrix.itemsize  # bytes
    count = _count(weight.nbytes, data.x.nbytes + outputs, device)
    calls = tuple(partial(call, weight.clone()) for _ in range(count))
    return SubjectCalls(calls, lambda: by_position(last[0]), lambda: last[0].fill_(float("nan")), matrix, may_refuse)


def _dense_copy(weight: torch.Tensor) -> torch.Tensor:
    """Of a convolution with its channels last, as its images are."""
    return weight.clone(memory_format=torch.channels_last if weight.dim() == 4 else torch.preserve_format)


def _copies(constants: Mapping[str, torch.Tensor], near: int, device: Device) -> list[dict[str, torch.Tensor]]:
    count = _count(sum(tensor.nbytes for tensor in constants.values()), near, device)
    return [{name: tensor.clone() for name, tensor in constants.items()} for _ in range(count)]


def _count(weight_bytes: int, near: int, device: Device) -> int:
    """How many copies of the weights a subject takes in turn; `near` bytes of inputs and outputs are no copies."""
    return min(_MOST_COPIES, max(1, -(-(_CACHES * device.gpu.l2_bytes - near) // weight_bytes)))


def _on(device: Device, array: np.ndarray) -> torch.Tensor:
    """An array of the CPU on the GPU; unsigned words as signed ones, which PyTorch knows better."""
    signed = array.view(np.int32) if array.dtype == np.uint32 else array
    return torch.from_numpy(signed).to(device.torch_device, copy=True)
