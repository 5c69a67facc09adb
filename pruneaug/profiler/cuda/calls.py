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
from pruneaug.kernels.cuda.formats import TF32
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

_MOST_COPIES = 256
_CACHES = 2  # times the second-level cache


@dataclass(frozen=True, slots=True, eq=False)
class SubjectCalls:
    """One launch for each copy of the weights, and what the last one has computed."""

    calls: tuple[Run, ...]
    result: Callable[[], torch.Tensor]  # [tokens, N] or [output positions, N]
    forget: Callable[[], object]  # overwrites the result
    matrix: torch.Tensor | None = None  # [N, K] if it is not the group's
    in_graph: bool = True  # whether a graph may record the calls

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
    """PyTorch's layer. Raises InputError for a layer that its semi-structured weights do not fit."""
    tf32 = group.dtype == TF32.name
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True  # its first call tries cuDNN's algorithms, the others take the fastest
    if subject.library == TORCH:
        return _layer(group.op, data.matrix, data, device, _dense_copy)
    if group.op.matrix_shape[1] % 4:
        raise InputError(f"2:4 needs in_features that 4 divides, but got {group.op.key}; leave {subject} out")
    # Its operators choose an algorithm and allocate when they are called, which no graph records.
    form = torch.sparse.to_sparse_semi_structured
    matrix = two_of_four(data.matrix) if group.pattern == DENSE else data.matrix
    return _layer(group.op, matrix, data, device, form, in_graph=False)


def _layer(
    op: Op,
    matrix: torch.Tensor,
    data: GroupData,
    device: Device,
    form: Callable[[torch.Tensor], torch.Tensor],
    in_graph: bool = True,
) -> SubjectCalls:
    """The layer with copies of a weight matrix in turn; `form` makes one from PyTorch's weight."""
    x, weight = as_input(op, data.x), layer_weight(op, matrix)
    last: list[torch.Tensor] = []

    def call(weight: torch.Tensor) -> None:
        last[:] = [layer_output(op, x, weight, data.bias)]

    outputs = positions_of(op) * len(matrix) * matrix.itemsize  # bytes
    count = _count(weight.nbytes, x.nbytes + outputs, device)
    calls = tuple(partial(call, form(weight)) for _ in range(count))
    other = None if matrix is data.matrix else matrix
    return SubjectCalls(calls, lambda: by_position(last[0]), lambda: last[0].fill_(float("nan")), other, in_graph)


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
