"""The first runtime: the operators of a PyTorch network, with our kernels in place of its layers."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.build import Builder
from pruneaug.kernels.layers import LayerKernel, bind
from pruneaug.kernels.variants import Variant, candidates
from pruneaug.network.layers import Network
from pruneaug.network.ops import Op
from pruneaug.runtime.graph import LayerCall, fold_batchnorms, layer_calls, program_graph, take_clamp
from pruneaug.runtime.plan import LayerPlan
from pruneaug.sparsity.matrix import weight_matrix


class CompiledNetwork:
    """A network compiled for inputs of fixed shapes: PyTorch tensors in, what the network returns out.

    Calls from several threads run one after the other.
    """

    def __init__(self, graph: fx.GraphModule, shapes: Sequence[tuple[int, ...] | None], kernels: int) -> None:
        self._graph = graph
        self._shapes = list(shapes)
        self._lock = threading.Lock()
        self.kernels = kernels  # layer calls that our kernels compute

    def __call__(self, *inputs: Any) -> Any:
        """Raises InputError for inputs of other shapes."""
        shapes = _shapes(inputs)
        if shapes != self._shapes:
            raise InputError(
                f"a compiled network takes inputs of the shapes it was compiled for, {self._shapes}, but got {shapes}; "
                "compile it for this batch size"
            )
        with self._lock, torch.inference_mode():
            return self._graph(*inputs)


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
    Raises CompileError if a layer of the network does not appear in the program.
    """
    graph = program_graph(program)
    fold_batchnorms(graph)
    ops = {layer.name: layer.op for layer in network.layers}
    kernels = 0
    seen = set()
    for call in list(layer_calls(graph)):
        if call.name not in ops:
            continue
        seen.add(call.name)
        plan = plans.get(call.name, LayerPlan())
        if plan.library == "torch" and call.name not in masks:
            continue
        attribute = f"_kernel_{kernels}"
        kernels += 1
        kernel = _bind(graph, call, ops[call.name], masks.get(call.name), plan.variant, builder)
        graph.add_module(attribute, _KernelModule(kernel))
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
    return CompiledNetwork(graph, _shapes(example_inputs), kernels)


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
        op, 1, float(1 - keep.float().mean()), lanes=target.lanes, registers=target.registers, threads=target.threads
    )[0]  # fmt: skip
    return bind(op, matrix, keep, call.bias, variant, builder, take_clamp(graph, call.node))


def _shapes(inputs: Sequence[Any]) -> list[tuple[int, ...] | None]:
    return [tuple(x.shape) if isinstance(x, torch.Tensor) else None for x in inputs]


class _KernelModule(nn.Module):
    """Lets a graph call a kernel."""

    def __init__(self, kernel: LayerKernel) -> None:
        super().__init__()
        self._kernel = kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._kernel(x)
