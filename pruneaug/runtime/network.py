"""The first runtime: the operators of a PyTorch network, with our kernels in place of its layers."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.build import Builder
from pruneaug.kernels.layers import LayerKernel, bind
from pruneaug.kernels.variants import Variant, candidates
from pruneaug.network.layers import Network
from pruneaug.network.ops import LinearOp, Op
from pruneaug.runtime.fusion import fold_batchnorms, take_clamp
from pruneaug.runtime.graph import LayerCall, layer_calls, program_graph
from pruneaug.runtime.plan import LayerPlan
from pruneaug.runtime.strides import accept_any_strides
from pruneaug.sparsity.matrix import weight_matrix


class CompiledNetwork:
    """A network compiled for inputs like its example: PyTorch tensors in, what the network returns out.

    Calls from several threads run one after the other, also those of different networks.
    """

    def __init__(self, graph: fx.GraphModule, example_inputs: Sequence[Any], kernels: int) -> None:
        self._graph = graph
        self._inputs = _describe(example_inputs)
        self.kernels = kernels  # layer calls that our kernels compute

    def __call__(self, *inputs: Any) -> Any:
        """Raises InputError for inputs of other shapes or dtypes."""
        described = _describe(inputs)
        if described != self._inputs:
            raise InputError(
                f"a compiled network takes inputs like those it was compiled for, ({', '.join(self._inputs)}), "
                f"but got ({', '.join(described)}); compile it for these"
            )
        with _one_torch_thread(), torch.inference_mode():
            return self._graph(*inputs)


_running = threading.Lock()
"""Held by the network that runs: kernels of all networks share the cores and TVM's threads, and PyTorch's number of
threads belongs to the whole process."""


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Let PyTorch's own operators run on the calling thread alone.

    Kernels leave their threads spinning on the cores for a while. A thread of PyTorch's pool would wait for one of them
    to lose its time slice, some milliseconds; the operators between the layers take microseconds.
    """
    with _running:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def compile_network(
    program: ExportedProgram,
    network: Network,
    masks: Mapping[str, torch.Tensor],
    plans: Mapping[str, LayerPlan],
    builder: Builder,
) -> CompiledNetwork:
    """Replace the layers of `network` by kernels; what is left runs as PyTorch operators.

    `masks` holds the bool masks of the sparse layers in their weights' layout; `plans` what computes each layer, by
    name. A layer that is in neither is dense and ours. Batch-norms are folded, ReLUs and clamps fused.

    Raises:
        InputError: a mask or plan of no prunable layer, a mask of another shape, a layer that is not float32.
        CompileError: a layer of the network does not appear in the program, or has another input there.
    """
    ops = {layer.name: layer.op for layer in network.layers}
    if unknown := sorted({*masks, *plans} - ops.keys()):
        raise InputError(f"masks and plans must name prunable layers, but got {unknown}; the layers are {list(ops)}")
    graph = program_graph(program)
    fold_batchnorms(graph)
    any_strides = accept_any_strides(graph)
    kernels = 0
    seen = set()
    for call in list(layer_calls(graph)):
        if call.name not in ops:
            continue
        seen.add(call.name)
        _check_call(call, ops[call.name])
        attribute = f"_kernel_{kernels}"
        kernels += 1
        kernel = _bind(
            graph, call, ops[call.name], masks.get(call.name), plans.get(call.name, LayerPlan()).variant, builder
        )
        graph.add_module(attribute, _KernelModule(kernel, contiguous=not any_strides))
        with graph.graph.inserting_before(call.node):
            node = graph.graph.call_module(attribute, (call.node.args[0],))
        call.node.replace_all_uses_with(node)
        graph.graph.erase_node(call.node)
    if missing := [name for name in ops if name not in seen]:
        raise CompileError(
            f"every prunable layer must be a linear or conv2d operator of the exported network, but {missing} are not; "
            "exclude them with a rule `dense: true`"
        )
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.delete_all_unused_submodules()
    graph.recompile()
    example_inputs, _ = program.example_inputs or ((), {})
    return CompiledNetwork(graph, example_inputs, kernels)


def _check_call(call: LayerCall, op: Op) -> None:
    if call.weight.dtype != torch.float32:
        raise InputError(
            f"a network must have float32 weights to be compiled, but layer {call.name!r} has {call.weight.dtype}; "
            "call `model.float()` first"
        )
    if isinstance(op, LinearOp):
        fits = call.shape[-1:] == (op.in_features,) and math.prod(call.shape) == op.tokens * op.in_features
    else:
        image = (op.in_channels, op.height, op.width)
        fits = call.shape == (op.batch, *image) or (op.batch == 1 and call.shape == image)
    if not fits:
        raise CompileError(
            f"every call of layer {call.name!r} must compute {op.key}, but one has an input {list(call.shape)}; "
            "export the network with the inputs that its layers were found with, or keep the layer dense by a rule "
            "`dense: true`"
        )


def _bind(
    graph: fx.GraphModule,
    call: LayerCall,
    op: Op,
    mask: torch.Tensor | None,
    variant: Variant | None,
    builder: Builder,
) -> LayerKernel:
    matrix = weight_matrix(call.weight)
    keep = torch.ones_like(matrix, dtype=torch.bool) if mask is None else weight_matrix(mask)
    target = builder.target
    variant = variant or candidates(
        op, _block_rows(keep), float(1 - keep.float().mean()),
        lanes=target.lanes, registers=target.registers, threads=target.threads,
    )[0]  # fmt: skip
    return bind(op, matrix, keep, call.bias, variant, builder, take_clamp(graph, call.node))


def _block_rows(keep: torch.Tensor) -> int:
    """The height of the mask's blocks as kernels see it: the largest group of rows whose masks are all the same."""
    for rows in (16, 8, 4, 2):
        first = torch.arange(len(keep)) // rows * rows  # the first row of each row's group
        if rows <= len(keep) and bool((keep == keep[first]).all()):
            return rows
    return 1


def _describe(inputs: Sequence[Any]) -> list[str]:
    """What a compiled network depends on in its inputs: shapes, dtypes, and values of what is no tensor."""
    return [
        f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
        for x in torch.utils._pytree.tree_leaves(list(inputs))
    ]


class _KernelModule(nn.Module):
    """Lets a graph call a kernel."""

    def __init__(self, kernel: LayerKernel, *, contiguous: bool) -> None:
        super().__init__()
        self._kernel = kernel
        self._contiguous = contiguous

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._kernel(x)
        return y.contiguous() if self._contiguous else y
