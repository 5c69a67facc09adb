"""Operators on a single image without a batch dimension, as operators on a batch of one: what kernels take."""

from __future__ import annotations

import torch
from torch import fx

_aten = torch.ops.aten
_OF_IMAGES = {
    _aten.conv2d.default, _aten.conv2d.padding, _aten.max_pool2d.default, _aten.avg_pool2d.default,
    _aten.adaptive_avg_pool2d.default,
}  # fmt: skip


def add_batches(graph: fx.GraphModule) -> None:
    """Put every convolution or pooling of [channels, rows, cols] between an unsqueeze and a squeeze, in place."""
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.target in _OF_IMAGES else None
        if not isinstance(source, fx.Node) or source.meta["val"].dim() != 3:
            continue
        result = node.meta["val"]
        with graph.graph.inserting_before(node):
            batch = graph.graph.call_function(_aten.unsqueeze.default, (source, 0))
        batch.meta["val"] = source.meta["val"].unsqueeze(0)
        node.replace_input_with(source, batch)
        with graph.graph.inserting_after(node):
            image = graph.graph.call_function(_aten.squeeze.dim, (node, 0))
        node.replace_all_uses_with(image, delete_user_cb=lambda user, image=image: user is not image)
        node.meta["val"], image.meta["val"] = result.unsqueeze(0), result
    graph.recompile()
