"""PyTorch's semi-structured product in the place of linear layers whose weights are 2:4."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import fx

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.cuda.formats import Format
from pruneaug.kernels.weights import Weights
from pruneaug.runtime.graph import LayerCall
from pruneaug.sparsity.masks import check_mask
from pruneaug.sparsity.patterns import TWO_OF_FOUR

_aten = torch.ops.aten
_TOKENS = 8  # of which the product takes multiples

Compress = Callable[[torch.Tensor], torch.Tensor]
"""A weight [N, K] of which two of each four are zero -> [N, about 9/16 K] of the same dtype, packed."""


def compress(weight: torch.Tensor) -> torch.Tensor:
    """`Compress` by cuSPARSELt, on the GPU of the weight.

    Raises CompileError where PyTorch's semi-structured weights do not take it: its sizes, its dtype, or the device.
    """
    try:
        packed = torch.sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense(weight).packed
    except RuntimeError as error:
        raise CompileError(f"PyTorch must hold it as a semi-structured weight, but raised: {error}") from error
    assert packed is not None
    return packed


def replace_semi_structured(
    graph: fx.GraphModule,
    calls: Sequence[LayerCall],
    weights: Mapping[fx.Node, Weights],
    form: Format,
    device: torch.device,
    pack: Compress = compress,
) -> tuple[set[fx.Node], dict[str, str]]:
    """Replace these calls, in place, by PyTorch's product of a packed 2:4 weight, a buffer of the graph, with the bias.

    What follows a layer stays as it is. Returns the nodes that were replaced, and of each layer that PyTorch does not
    compute so the reason; those stay as they are. Calls of one layer share its weight.
    Raises InputError for a mask that keeps more than two of four weights.
    """
    replaced: set[fx.Node] = set()
    refused: dict[str, str] = {}
    stored: dict[str, list[str]] = {}
    for call in calls:
        held = weights[call.node]
        if held.mask is not None and not check_mask(held.mask, TWO_OF_FOUR):
            raise InputError(
                f"the mask of layer {call.name!r} must keep at most two of each four columns to run as 2:4, but it "
                f"keeps more; prune it by {TWO_OF_FOUR}, or choose another variant"
            )
        try:
            if call.name not in stored:
                stored[call.name] = _store(graph, f"_two_of_four_{len(stored)}", call, held, form, device, pack)
        except CompileError as error:
            refused[call.name] = str(error)
            continue
        _replace(graph, call, stored[call.name])
        replaced.add(call.node)
    return replaced, refused


def _store(
    graph: fx.GraphModule,
    prefix: str,
    call: LayerCall,
    held: Weights,
    form: Format,
    device: torch.device,
    pack: Compress,
) -> list[str]:
    """Keep the packed weight and the bias, if there is one, as buffers; their names."""
    if call.weight.dim() != 2:
        raise CompileError("PyTorch's semi-structured weights are of linear layers, but it is a convolution")
    matrix = held.matrix if held.mask is None else held.matrix * held.mask
    buffers = {f"{prefix}_weight": pack(matrix.to(device, form.torch_dtype))}
    if held.bias is not None:
        buffers[f"{prefix}_bias"] = held.bias.to(device, form.torch_dtype)
    for name, tensor in buffers.items():
        graph.register_buffer(name, tensor)
    return list(buffers)


def _replace(graph: fx.GraphModule, call: LayerCall, buffers: Sequence[str]) -> None:
    """In the place of x [..., K] times W [N, K] the product of the packed W and x^T as rows [tokens, K], transposed."""
    node, tokens = call.node, math.prod(call.shape[:-1])
    call_function = graph.graph.call_function
    with graph.graph.inserting_before(node):
        weight, *bias = (graph.graph.get_attr(name) for name in buffers)
        x = call_function(_aten.reshape.default, (node.args[0], [tokens, call.shape[-1]]))
        if tokens % _TOKENS:
            x = call_function(_aten.constant_pad_nd.default, (x, [0, 0, 0, -tokens % _TOKENS]))
        x = call_function(_aten.contiguous.default, (x,))  # else x^T would be read as if it were
        y = call_function(
            _aten._cslt_sparse_mm.default,
            (weight, call_function(_aten.t.default, (x,)), *bias),
            {"transpose_result": True},
        )
        if tokens % _TOKENS:
            y = call_function(_aten.slice.Tensor, (y, 0, 0, tokens))
        y = call_function(_aten.reshape.default, (y, [*call.shape[:-1], int(call.weight.shape[0])]))
    y.meta = dict(node.meta)
    node.replace_all_uses_with(y)
    graph.graph.erase_node(node)
