"""From a PyTorch network and the masks of its pruned layers to the graph that a GPU runs."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pruneaug.errors import InputError, NetworkError
from pruneaug.kernels.cuda.formats import FORMATS, Format
from pruneaug.kernels.cuda.products import CudaCall
from pruneaug.kernels.cuda.shapes import Shape
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.cuda.variants import TORCH, TORCH_2_4, CudaVariant
from pruneaug.kernels.weights import Weights
from pruneaug.network.layers import apply_masks
from pruneaug.network.ops import Conv2dOp, Op
from pruneaug.registry import did_you_mean
from pruneaug.runtime.cuda.choice import Choose, largest_that_fills, pack_layer
from pruneaug.runtime.cuda.fusing import FusedLayer, fused_layer, op_of, replace_layers
from pruneaug.runtime.cuda.report import CudaReport, LayerReport
from pruneaug.runtime.cuda.semi_structured import Compress, compress, replace_semi_structured
from pruneaug.runtime.functional import functional_graph
from pruneaug.runtime.fusion import fold_batchnorms
from pruneaug.runtime.graph import LayerCall, called_layers, check_module, constant, export_program, layer_calls
from pruneaug.runtime.signature import Signature, describe
from pruneaug.runtime.simplify import remove_void_masks, simplify
from pruneaug.runtime.unbatched import add_batches
from pruneaug.sparsity.masks import mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix


@dataclass(frozen=True, slots=True, eq=False)
class CudaGraph:
    """A network on a GPU before its kernels are compiled.

    `graph` takes the tensors of `signature`, in the dtypes and memory formats of `static`, and returns those of its
    results in a tuple, which become `results`, the dtypes that the network returns. `shapes` are the kernels.
    """

    graph: fx.GraphModule
    signature: Signature
    static: tuple[torch.Tensor, ...]
    results: tuple[torch.dtype, ...]
    shapes: tuple[Shape, ...]
    report: CudaReport


def build_graph(
    model: nn.Module,
    example_inputs: Sequence[Any],
    masks: Mapping[str, torch.Tensor],
    *,
    dtype: str,
    arch: str,
    device: torch.device,
    choose: Choose = largest_that_fills,
    variants: Mapping[str, CudaVariant | str] | None = None,
    compress: Compress = compress,
) -> CudaGraph:
    """The network in eval mode, for inputs like the examples, with the layers of `masks` computed by our kernels.

    `masks` (layer name -> bool, in the weight's layout) says which weights are removed; other layers are dense and
    PyTorch's. `dtype` is a name of FORMATS, of weights and activations; inputs and outputs keep the network's.
    `variants` names the kernels of some layers, also of dense ones, or TORCH for those that shall be PyTorch's, or
    TORCH_2_4 for its product of a 2:4 weight, which `compress` packs on the GPU; where it says nothing or "", `choose`
    chooses. The model stays as it is.
    Raises InputError, NetworkError for a mask of no layer, CompileError for a network that torch.export rejects.
    """
    if dtype not in FORMATS:
        raise InputError(
            f"`dtype` on a GPU must be one of {', '.join(FORMATS)}, but got {dtype!r}{did_you_mean(dtype, FORMATS)}"
        )
    form, target = FORMATS[dtype], CudaTarget(arch)
    named = {name: variant for name, variant in (variants or {}).items() if variant}
    ours = {name for name in (*masks, *named) if named.get(name) != TORCH}
    graph, precise, signature, original = _capture(model, example_inputs, masks, ours, form, device)
    calls = [(call, op_of(call)) for call in layer_calls(graph)]

    def pack(layer: FusedLayer) -> CudaCall:
        name, held = layer.call.name, precise[layer.call.node]
        return pack_layer(name, layer.op, held, layer.epilogue, form, target, choose, named)

    taken = [call for call, _ in calls if call.node in precise]
    two_of_four = [call for call in taken if named.get(call.name) == TORCH_2_4]
    others = [call for call in taken if named.get(call.name) != TORCH_2_4]
    halves, refused = replace_semi_structured(graph, two_of_four, precise, form, device, compress)
    products, unfit = replace_layers(graph, others, pack, device)
    arrange_kernels(graph, torch.channels_last)
    images = any(isinstance(op, Conv2dOp) for _, op in calls)
    inputs, outputs = _flatten(graph)
    return CudaGraph(
        fx.GraphModule(graph, graph.graph),  # only with the tensors that it still reads
        signature,
        tuple(channels_last(torch.zeros(x.shape, dtype=x.dtype, device=device), images) for x in inputs),
        tuple(original if y.dtype == form.torch_dtype else y.dtype for y in outputs),
        tuple(dict.fromkeys(product.shape for product in products.values())),
        CudaReport(tuple(_reports(calls, products, halves, refused | unfit, masks)), arch, dtype),
    )


def fused_layers(model: nn.Module, example_inputs: Sequence[Any], dtype: str) -> list[FusedLayer]:
    """The calls of all linear layers and convolutions of a network, with what their kernels would compute beside them.

    Raises InputError, CompileError for a network that torch.export rejects.
    """
    graph, *_ = _capture(model, example_inputs, {}, (), FORMATS[dtype], torch.device("cpu"))
    return [fused_layer(call) for call in layer_calls(graph)]


def channels_last(x: torch.Tensor, images: bool) -> torch.Tensor:
    """Tensors of four dimensions, if they are images, with the channels of a position beside each other."""
    return x.contiguous(memory_format=torch.channels_last) if images and x.dim() == 4 else x


def _capture(
    model: nn.Module,
    example_inputs: Sequence[Any],
    masks: Mapping[str, torch.Tensor],
    ours: Collection[str],
    form: Format,
    device: torch.device,
) -> tuple[fx.GraphModule, dict[fx.Node, Weights], Signature, torch.dtype]:
    """The network as a graph in `form`, what each call of a layer of `ours` computes with, its signature and its own
    dtype."""
    check_module(model)
    whole = copy.deepcopy(model).to(device).eval()
    apply_masks(whole, masks)
    weights = {name: tensor.detach() for name, tensor in _tensors(whole) if tensor.is_floating_point()}
    original = next((tensor.dtype for tensor in weights.values()), torch.float32)
    rounded = whole.to(form.torch_dtype)  # `weights` keep their precision
    inputs = pytree.tree_map_only(
        torch.Tensor,
        lambda x: x.detach().to(device, form.torch_dtype if x.is_floating_point() else None),
        tuple(example_inputs),
    )
    program = export_program(rounded, inputs)
    if unknown := sorted(set(masks) - called_layers(program)):
        raise NetworkError(
            f"masks must be of linear layers and convolutions that run on the example inputs, but {unknown[0]!r} is "
            f"none{did_you_mean(unknown[0], called_layers(program))}; leave its mask out"
        )
    graph = functional_graph(program)
    add_batches(graph)
    precise = _fold(graph, weights, masks, ours, form)
    simplify(graph)
    remove_void_masks(graph)
    signature = replace(Signature.of(program, graph), inputs=describe(tuple(example_inputs)))
    return graph, precise, signature, original


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by all of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _fold(
    graph: fx.GraphModule,
    weights: Mapping[str, torch.Tensor],
    masks: Mapping[str, torch.Tensor],
    ours: Collection[str],
    form: Format,
) -> dict[fx.Node, Weights]:
    """Fold batch-norms, in place, in the precision that `weights` have, before what remains is rounded.

    Returns what each call of a layer of `ours` computes with, float32 in the CPU's memory.
    """
    read = [node for node in graph.graph.nodes if node.op == "get_attr" and node.target in weights]
    for node in read:
        _set(graph, str(node.target), weights[str(node.target)])
    fold_batchnorms(graph)
    kept = {}
    for call in layer_calls(graph):
        if call.name in ours:
            mask = None if call.name not in masks else weight_matrix(masks[call.name]).cpu()
            bias = None if call.bias is None else call.bias.float().cpu()
            kept[call.node] = Weights(weight_matrix(call.weight).float().cpu(), mask, bias)
    for node in graph.graph.nodes:
        if node.op == "get_attr" and (node in read or "val" not in node.meta):  # batch-norms are folded into the latter
            _set(graph, str(node.target), constant(graph, node).to(form.torch_dtype))
    return kept


def arrange_kernels(graph: fx.GraphModule, memory_format: torch.memory_format) -> None:
    """Keep the weights of the convolutions that are PyTorch's in this memory format, in place."""
    for call in layer_calls(graph):
        if call.weight.dim() == 4:
            target: Any = call.node.args[1]
            _set(graph, str(target.target), call.weight.contiguous(memory_format=memory_format))


def _set(graph: fx.GraphModule, target: str, value: torch.Tensor) -> None:
    """Make a buffer of this value what `get_attr` nodes with this target read."""
    path, _, name = target.rpartition(".")
    owner = graph.get_submodule(path)
    delattr(owner, name)
    owner.register_buffer(name, value)


def _flatten(graph: fx.GraphModule) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Let the graph take its tensors one by one and return a tuple of them, in place; fake ones like these."""
    graph.graph.set_codegen(fx.graph.CodeGen())
    inputs = []
    for node in graph.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta["val"], torch.Tensor):
            inputs.append(node.meta["val"])
        elif node.op == "placeholder":
            graph.graph.erase_node(node)  # a number or None, which the program was exported for
    output = graph.graph.output_node()
    results = [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, fx.Node)]
    output.args = (tuple(results),)
    return inputs, [node.meta["val"] for node in results]


def _reports(
    calls: Sequence[tuple[LayerCall, Op]],
    products: Mapping[FusedLayer, CudaCall],
    halves: Collection[fx.Node],
    refused: Mapping[str, str],
    masks: Mapping[str, torch.Tensor],
) -> Iterator[LayerReport]:
    ours = {layer.call.node: (layer, product) for layer, product in products.items()}
    for call, op in calls:
        zeros = mask_sparsity(masks[call.name]) if call.name in masks else 0.0
        if call.node in ours:
            layer, product = ours[call.node]
            yield LayerReport(call.name, op.key, layer.origin, product.shape.key, zeros)
        else:
            kind = "conv2d" if isinstance(op, Conv2dOp) else "linear"
            kernel = TORCH_2_4 if call.node in halves else None
            yield LayerReport(call.name, op.key, kind, kernel, zeros, refused.get(call.name))
