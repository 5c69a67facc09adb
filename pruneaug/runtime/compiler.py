"""The compiler: PyTorch networks become one module of kernels, packed weights and a plan of the memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import fx
from torch.export import ExportedProgram
from tvm.runtime import Executable

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.crew import make_crew
from pruneaug.kernels.layouts import Layouts
from pruneaug.network.layers import Network
from pruneaug.network.ops import LinearOp, Op
from pruneaug.runtime.attention import fuse_attention
from pruneaug.runtime.emit import relax_module
from pruneaug.runtime.functional import functional_graph
from pruneaug.runtime.fusion import fold_batchnorms
from pruneaug.runtime.graph import LayerCall, called_layers, conv_op, layer_calls, mask_weights
from pruneaug.runtime.lowering import Lowering
from pruneaug.runtime.network import CompiledFunction, CompiledNetwork
from pruneaug.runtime.operators import HANDLERS
from pruneaug.runtime.plan import Plans
from pruneaug.runtime.report import CompileReport
from pruneaug.runtime.schedule import build
from pruneaug.runtime.signature import Signature
from pruneaug.runtime.simplify import fold_constants, simplify
from pruneaug.runtime.steps import Steps
from pruneaug.runtime.unbatched import add_batches


def compile_network(
    program: ExportedProgram,
    network: Network,
    masks: Mapping[str, torch.Tensor],
    plans: Plans,
    target: CpuTarget,
) -> CompiledNetwork:
    """Compile a network for inputs like those it was exported with.

    `masks` holds the bool masks of the sparse layers in their weights' layout; `plans` the variant of each layer's
    kernel, by name. A layer that is in neither is dense. Every convolution, linear layer and attention becomes our
    kernel with what follows it fused, also those that `network` does not list.

    Raises:
        InputError: a mask or plan of no prunable layer, a mask of another shape, a layer that is not float32.
        CompileError: a layer of the network does not appear in the program, or has another input there; an operator
            that cannot be compiled.
    """
    return compile_programs({"main": program}, network, masks, plans, target)


def compile_programs(
    programs: Mapping[str, ExportedProgram],
    network: Network,
    masks: Mapping[str, torch.Tensor],
    plans: Plans,
    target: CpuTarget,
) -> CompiledNetwork:
    """`compile_network` for several exports of one network, each for inputs of its own shapes, into one module."""
    module, functions = build_programs(programs, network, masks, plans, target)
    make_crew()
    return CompiledNetwork(module, functions, target.threads)


def build_programs(
    programs: Mapping[str, ExportedProgram],
    network: Network,
    masks: Mapping[str, torch.Tensor],
    plans: Plans,
    target: CpuTarget,
) -> tuple[Executable, dict[str, CompiledFunction]]:
    """The machine code of `compile_programs`, which may be another machine's, and its functions by their names."""
    names = [layer.name for layer in network.layers]
    if unknown := sorted({*masks, *plans} - set(names)):
        raise InputError(f"masks and plans must name prunable layers, but got {unknown}; the layers are {names}")
    functions: dict[str, Steps] = {}
    compiled: dict[str, CompiledFunction] = {}
    regions = 0
    for index, (name, program) in enumerate(programs.items()):
        graph = prepare(program, masks)
        # Layers are listed with the ops of the first program's inputs; the others have other batches.
        _check_layers(program, graph, network, masks, check_ops=index == 0)
        functions[name] = _lower(graph, masks, plans, target)
        report = CompileReport.of(functions[name], regions)
        regions += len(report.fallbacks)
        compiled[name] = CompiledFunction(Signature.of(program, graph), report)
    metadata = {
        "functions": {name: function.to_json() for name, function in compiled.items()},
        "threads": target.threads,
    }
    return build(relax_module(functions, metadata), target.to_tvm()), compiled


def prepare(program: ExportedProgram, masks: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """The program as the graph that is lowered: functional, batch-norms and constants folded, attention as one node."""
    graph = functional_graph(program)
    mask_weights(graph, masks)
    add_batches(graph)
    fold_batchnorms(graph)
    simplify(graph)
    fuse_attention(graph)
    fold_constants(graph)
    return graph


def _lower(graph: fx.GraphModule, masks: Mapping[str, torch.Tensor], plans: Plans, target: CpuTarget) -> Steps:
    convolutions = [conv_op(call) for call in layer_calls(graph) if call.weight.dim() == 4]
    return Lowering(graph, target, Layouts(convolutions, target.lanes), masks, plans).run(HANDLERS)


def _check_layers(
    program: ExportedProgram,
    graph: fx.GraphModule,
    network: Network,
    masks: Mapping[str, torch.Tensor],
    *,
    check_ops: bool,
) -> None:
    ops = {layer.name: layer.op for layer in network.layers}
    for call in layer_calls(graph):
        if call.name not in ops:
            continue
        if call.weight.dtype != torch.float32:
            raise InputError(
                f"a network must have float32 weights to be compiled, but layer {call.name!r} has "
                f"{call.weight.dtype}; call `model.float()` first"
            )
        mask = masks.get(call.name)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != call.weight.shape):
            raise InputError(
                f"a mask must be a bool mask of the same shape as its weight, but layer {call.name!r} has weight "
                f"{list(call.weight.shape)} and mask {mask.dtype} {list(mask.shape)}"
            )
        if check_ops and not _fits(call, ops[call.name]):
            raise CompileError(
                f"every call of layer {call.name!r} must compute {ops[call.name].key}, but one has an input "
                f"{list(call.shape)}; export the network with the inputs that its layers were found with, or keep the "
                "layer dense by a rule `dense: true`"
            )
    if missing := sorted(ops.keys() - called_layers(program)):
        raise CompileError(
            f"every prunable layer must be a linear or conv2d operator of the exported network, but {missing} are not; "
            "exclude them with a rule `dense: true`"
        )


def _fits(call: LayerCall, op: Op) -> bool:
    if isinstance(op, LinearOp):
        return call.shape[-1:] == (op.in_features,) and math.prod(call.shape) == op.tokens * op.in_features
    return call.shape == (op.batch, op.in_channels, op.height, op.width)
