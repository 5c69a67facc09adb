"""Dense layers by OpenVINO, many of the same op beside each other in one network.

So its weights are cold, and neither a call nor what a network's first and last layers convert counts by more than a
share: it computes convolutions in layouts of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.kernels.lowp.formats import quantize, quantize_rows
from pruneaug.network.ops import LinearOp
from pruneaug.profiler.op_peers.layer import DenseLayer, PeerCall, cold_weights
from pruneaug.profiler.runtimes import openvino_request


def float32(layer: DenseLayer) -> PeerCall:
    """Told to compute in float32."""
    import openvino as ov
    from openvino import opset13 as ops

    inputs = layer.x.contiguous().numpy()
    x = ops.parameter(list(inputs.shape), ov.Type.f32)
    weights = cold_weights(layer.weight(layer.matrix))
    ys = [_layer(layer, x, ops.constant(weight.numpy())) for weight in weights]
    return PeerCall(_Run(layer, x, ys[0], _parts(layer, ys), inputs, "f32"), torch.from_numpy, len(weights))


def bfloat16(layer: DenseLayer) -> PeerCall:
    """Told to compute in bfloat16, from and to channels last."""
    import openvino as ov
    from openvino import opset13 as ops

    inputs = layer.channels_last().bfloat16()
    x = ops.parameter(list(inputs.shape), ov.Type.bf16)
    values = _channels_first(layer, ops.convert(x, "f32"))
    weights = cold_weights(layer.weight(layer.matrix))
    ys = [_layer(layer, values, ops.constant(weight.numpy())) for weight in weights]
    y = _channels_last(layer, ops.convert(ys[0], "bf16"))
    # What no product follows is computed in float32, outputs of layers included.
    ones = np.ones((1, len(layer.matrix)), np.float32)
    if isinstance(layer.op, LinearOp):
        parts = ops.matmul(_parts(layer, ys), ops.constant(ones), False, True)
    else:
        parts = ops.convolution(_parts(layer, ys), ops.constant(ones[:, :, None, None]), [1, 1], [0, 0], [0, 0], [1, 1])

    def read(result: npt.NDArray[Any]) -> torch.Tensor:
        return layer.channels_first(torch.from_numpy(result.view(np.int16)).view(torch.bfloat16).double())

    return PeerCall(_Run(layer, x, y, parts, inputs.view(torch.int16).numpy(), "bf16"), read, len(weights))


def int8(layer: DenseLayer) -> PeerCall:
    """On the graph that it reads from a quantised network: dequantised operands, a quantised result."""
    import openvino as ov
    from openvino import opset13 as ops

    def scalar(value: float) -> Any:
        return ops.constant(np.float32(value))

    inputs = quantize(layer.channels_last(), layer.x_affine).numpy()
    q, scale = quantize_rows(layer.matrix)
    x = ops.parameter(list(inputs.shape), ov.Type.u8)
    values = ops.subtract(ops.convert(x, "f32"), scalar(layer.x_affine.zero_point))
    values = _channels_first(layer, ops.multiply(values, scalar(layer.x_affine.scale)))
    rows = scale.float().reshape(-1, *[1] * (1 if isinstance(layer.op, LinearOp) else 3)).numpy()
    low, high = (layer.y_affine.scale * (end - layer.y_affine.zero_point) for end in (0, 255))
    weights, ys = cold_weights(layer.weight(q)), []
    for weight in weights:
        y = _layer(layer, values, ops.multiply(ops.convert(ops.constant(weight.numpy()), "f32"), ops.constant(rows)))
        y = ops.fake_quantize(y, scalar(low), scalar(high), scalar(0), scalar(255), 256)
        ys.append(ops.convert(y, "u8"))
    run = _Run(layer, x, _channels_last(layer, ys[0]), _parts(layer, ys), inputs, "f32")
    return PeerCall(run, layer.read_uint8, len(weights))


def _layer(layer: DenseLayer, x: Any, weight: Any) -> Any:
    """The product or convolution of x and its bias."""
    from openvino import opset13 as ops

    op, bias = layer.op, layer.bias.numpy()
    if isinstance(op, LinearOp):
        return ops.add(ops.matmul(x, weight, False, True), ops.constant(bias[None]))
    top, left, bottom, right = op.padding
    where = list(op.stride), [top, left], [bottom, right], list(op.dilation)
    if op.groups == 1:
        y = ops.convolution(x, weight, *where)
    else:
        groups = ops.constant([op.groups, op.out_channels // op.groups, op.in_channels // op.groups, *op.kernel])
        y = ops.group_convolution(x, ops.reshape(weight, groups, False), *where)
    return ops.add(y, ops.constant(bias[None, :, None, None]))


def _parts(layer: DenseLayer, ys: list[Any]) -> Any:
    """The channels of one position of every output, which makes OpenVINO compute them all without keeping them."""
    from openvino import opset13 as ops

    if isinstance(layer.op, LinearOp):
        zero, one = ops.constant([0]), ops.constant([1])
        return ops.concat([ops.slice(y, zero, one, one, zero) for y in ys], 0)
    size = list(layer.op.out_size)
    return ops.concat([ops.max_pool(y, size, [1, 1], [0, 0], [0, 0], [1, 1]).output(0) for y in ys], 0)


def _channels_first(layer: DenseLayer, x: Any) -> Any:
    from openvino import opset13 as ops

    return x if isinstance(layer.op, LinearOp) else ops.transpose(x, [0, 3, 1, 2])


def _channels_last(layer: DenseLayer, y: Any) -> Any:
    from openvino import opset13 as ops

    return y if isinstance(layer.op, LinearOp) else ops.transpose(y, [0, 2, 3, 1])


class _Run:
    """A call of the network x -> y, parts; it returns y."""

    def __init__(self, layer: DenseLayer, x: Any, y: Any, parts: Any, inputs: npt.NDArray[Any], precision: str) -> None:
        import openvino as ov

        self._inputs = inputs  # the request only points to them
        self._request = openvino_request(ov.Model([y, parts], [x]), layer.threads, precision)
        self._request.set_input_tensor(ov.Tensor(inputs, list(inputs.shape), x.get_element_type()))

    def __call__(self) -> Any:
        self._request.start_async()  # `infer` would spend tens of microseconds on Python objects
        self._request.wait()
        return self._request.get_output_tensor(0).data
