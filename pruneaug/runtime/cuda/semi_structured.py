"""PyTorch's semi-structured product in the place of linear layers whose weights are 2:4."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def fastest_algorithm(weight: torch.Tensor, size: Sequence[int], bias: torch.Tensor | None) -> int:
    """cuSPARSELt's number of the algorithm that it finds fastest for `product` with inputs of this size [..., K].

    Raises CompileError where PyTorch does not compute the product.
    """
    x = weight.new_zeros((_whole(math.prod(size[:-1])), size[-1]))
    try:
        return int(_aten._cslt_sparse_mm_search.default(weight, x.t(), bias, transpose_result=True))
    except RuntimeError as error:
        raise CompileError(f"PyTorch must compute its 2:4 product, but raised: {error}") from error


def call_now(operator: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any] | None = None) -> Any:
    """A `call` of `product` that computes."""
    return operator(*arguments, **(options or {}))


def product(
    call: Callable[..., Any], x: Any, size: Sequence[int], weight: Any, bias: Any | None, algorithm: int
) -> Any:
    """The packed W [N, K] times x^T, x of this size [..., K], as rows [tokens, N], with the bias.

    `call` takes an operator of PyTorch, its arguments and options: it calls it, or adds its call to a graph.
    """
    tokens = math.prod(size[:-1])
    rows = call(_aten.reshape.default, (x, [tokens, size[-1]]))
    if tokens != _whole(tokens):
        rows = call(_aten.constant_pad_nd.default, (rows, [0, 0, 0, _whole(tokens) - tokens]))
    rows = call(_aten.contiguous.default, (rows,))  # else x^T would be read as if it were
    options = {"transpose_result": True, "alg_id": algorithm}
    y = call(_aten._cslt_sparse_mm.default, (weight, call(_aten.t.default, (rows,)), bias), options)
    return y if tokens == _whole(tokens) else call(_aten.slice.Tensor, (y, 0, 0, tokens))


def _whole(tokens: int) -> int:
    return tokens + -tokens % _TOKENS


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
            _replace(graph, call, stored[call.name])
        except CompileError as error:
            refused[call.name] = str(error)
            continue
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
    """In the place of x [..., K] times W [N, K] the product of the packed W."""
    node = call.node
    weight, bias = graph.get_buffer(buffers[0]), graph.get_buffer(buffers[1]) if len(buffers) > 1 else None
    algorithm = fastest_algorithm(weight, call.shape, bias)
    with graph.graph.inserting_before(node):
        held = [graph.graph.get_attr(name) for name in buffers]
        add = graph.graph.call_function
        y = product(add, node.args[0], call.shape, held[0], held[1] if len(held) > 1 else None, algorithm)
        y = add(_aten.reshape.default, (y, [*call.shape[:-1], int(call.weight.shape[0])]))
    y.meta = dict(node.meta)
    node.replace_all_uses_with(y)
    graph.graph.erase_node(node)
