"""Convolutions of a single image without a batch dimension, as convolutions of a batch of one: what kernels take."""

from __future__ import annotations

import torch
from torch import fx

from pruneaug.runtime.graph import layer_calls

_aten = torch.ops.aten


def add_batches(graph: fx.GraphModule) -> None:
    """Put every convolution of an image [channels, rows, cols] between an unsqueeze and a squeeze, in place."""
    for call in layer_calls(graph):
        node, source = call.node, call.node.args[0]
        if call.weight.dim() != 4 or len(call.shape) != 3 or not isinstance(source, fx.Node):
            continue
        result = node.meta["val"]
        with graph.graph.inserting_before(node):
            batch = graph.graph.call_function(_aten.unsqueeze.default, (source, 0))
        batch.meta["val"] = source.meta["val"].unsqueeze(0)
        node.replace_input_with(source, batch)
        with graph.graph.inserting_after(node):
            image = graph.graph.call_function(_aten.squeeze.dim, (node, 0))
        node.replace_all_uses_with(image, delete_user_cb=lambda user, image=image: user is not image)  # type: ignore[misc]
        node.meta["val"], image.meta["val"] = result.unsqueeze(0), result
    graph.recompile()
