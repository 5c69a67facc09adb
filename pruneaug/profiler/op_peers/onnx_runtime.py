"""Dense layers by ONNX Runtime, many of the same op beside each other in one network.

So its weights are cold, and neither a call nor what a network's first and last layers convert counts by more than a
share: it computes convolutions in a layout of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.kernels.lowp.formats import quantize, quantize_rows
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.profiler.op_peers.layer import DenseLayer, PeerCall, cold_weights
from pruneaug.profiler.runtimes import onnxruntime_session

_OWN = "com.microsoft"  # its domain of operators that ONNX lacks
_OPSET, _IR = 17, 9  # the newest that every supported version reads

MakeNode = Callable[[str, str], Any]
"""(name of the weight, name of the output) -> the layer's node."""


def float32(layer: DenseLayer) -> PeerCall:
    """Its product with constant weights, or its convolution."""
    from onnx import helper

    op = layer.op

    def node(weight: str, y: str) -> Any:
        if isinstance(op, LinearOp):
            return helper.make_node("Gemm", ["x", weight, "bias"], [y], transB=1)
        return helper.make_node(
            "Conv", ["x", weight, "bias"], [y],
            pads=op.padding, strides=op.stride, dilations=op.dilation, group=op.groups,
        )  # fmt: skip

    weights = [weight.numpy() for weight in cold_weights(layer.weight(layer.matrix))]
    run = _run(layer, layer.x.numpy(), node, weights, {"bias": layer.bias.numpy()})
    return PeerCall(run, torch.from_numpy, len(weights))


def int8(layer: DenseLayer) -> PeerCall:
    """Its quantised product, or its quantised convolution with channels last."""
    from onnx import helper

    op = layer.op
    q, scale = quantize_rows(layer.matrix)
    others = {
        "x_scale": np.float32(layer.x_affine.scale),
        "x_zero": np.uint8(layer.x_affine.zero_point),
        "w_scale": scale.float().numpy(),
        "w_zero": np.zeros(len(scale), np.int8),
        "bias": (layer.bias.double() / (scale * layer.x_affine.scale)).round().to(torch.int32).numpy(),
        "y_scale": np.float32(layer.y_affine.scale),
        "y_zero": np.uint8(layer.y_affine.zero_point),
    }

    def node(weight: str, y: str) -> Any:
        operands = ["x", "x_scale", "x_zero", weight, "w_scale", "w_zero"]
        if isinstance(op, LinearOp):
            return helper.make_node("QGemm", [*operands, "bias", "y_scale", "y_zero"], [y], domain=_OWN)
        return helper.make_node(
            "QLinearConv", [*operands, "y_scale", "y_zero", "bias"], [y], domain=_OWN,
            channels_last=1, pads=op.padding, strides=op.stride, dilations=op.dilation,
        )  # fmt: skip

    rows = q.t() if isinstance(op, LinearOp) else layer.weight(q)
    weights = [weight.numpy() for weight in cold_weights(rows.contiguous())]
    x = quantize(layer.channels_last(), layer.x_affine).numpy()
    return PeerCall(_run(layer, x, node, weights, others), layer.read_uint8, len(weights))


def _run(
    layer: DenseLayer, x: npt.NDArray[Any], node: MakeNode, weights: list[npt.NDArray[Any]], others: dict[str, Any]
) -> Callable[[], Any]:
    """A call of the network x -> y0, parts; it returns y0, the output of the layer with the first of the weights.

    `parts` has the channels of one position of every output, which makes it compute them all without keeping them.
    """
    from onnx import helper, numpy_helper

    def part(i: int) -> Any:
        if isinstance(layer.op, Conv2dOp) and x.dtype == np.float32:
            # A slice would turn the whole image into the plain layout first.
            size = layer.op.out_size
            return helper.make_node("MaxPool", [f"y{i}"], [f"part{i}"], kernel_shape=[1, 1], strides=size)
        return helper.make_node("Slice", [f"y{i}", "from", "to"], [f"part{i}"])

    copies = range(len(weights))
    nodes = [made for i in copies for made in (node(f"w{i}", f"y{i}"), part(i))]
    nodes.append(helper.make_node("Concat", [f"part{i}" for i in copies], ["parts"], axis=0))
    arrays = others | {f"w{i}": weights[i] for i in copies}
    arrays |= {"from": np.zeros(x.ndim - 1, np.int64), "to": np.ones(x.ndim - 1, np.int64)}
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in ("y0", "parts")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(_OWN, 1)])
    model.ir_version = _IR
    session = onnxruntime_session(model.SerializeToString(), layer.threads)
    return lambda: session.run(None, {"x": x})[0]
