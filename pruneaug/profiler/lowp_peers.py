"""Dense layers in reduced precision by other libraries, each as its users call it.

Inputs, weights and outputs have the precision already, and images have their channels last: what each library computes
in. So a library is timed on the layer alone, as our kernels are between planes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pruneaug.errors import MeasurementError
from pruneaug.kernels.lowp.formats import BFLOAT16, INT8, Affine, Format, dequantize, quantize, quantize_rows
from pruneaug.network.ops import Conv2dOp, LinearOp, Op
from pruneaug.sparsity.matrix import weight_from_matrix

Call = Callable[[], Any]
Read = Callable[[Any], torch.Tensor]
"""What a call returns -> float [tokens, out_features] or [batch, channels, height, width]."""


@dataclass(frozen=True, slots=True, eq=False)
class DenseLayer:
    """A layer to compute: its weight matrix float32 [N, K], bias [N] and input, and for int8 their quantisation.

    `x` is float32 [tokens, in_features] or [batch, channels, height, width]; `threads` is how many a library may use.
    """

    op: Op
    matrix: torch.Tensor
    bias: torch.Tensor
    x: torch.Tensor
    x_affine: Affine
    y_affine: Affine
    threads: int

    def weight(self, matrix: torch.Tensor) -> torch.Tensor:
        """A weight matrix as libraries take it: [N, K], or [out_channels, in_channels, height, width]."""
        if isinstance(self.op, LinearOp):
            return matrix
        return weight_from_matrix(matrix, (self.op.out_channels, self.op.in_channels, *self.op.kernel))

    def channels_last(self) -> torch.Tensor:
        """The input [tokens, in_features] or [batch, height, width, channels]."""
        return (self.x if isinstance(self.op, LinearOp) else self.x.permute(0, 2, 3, 1)).contiguous()

    def read_uint8(self, y: Any) -> torch.Tensor:
        """A quantised output, channels last."""
        values = dequantize(torch.from_numpy(y), self.y_affine)
        return values if isinstance(self.op, LinearOp) else values.permute(0, 3, 1, 2)


def torch_bfloat16(layer: DenseLayer) -> tuple[Call, Read]:
    """PyTorch's operators on bfloat16 tensors."""
    op, x, bias = layer.op, layer.x.bfloat16(), layer.bias.bfloat16()
    weight = layer.weight(layer.matrix).bfloat16()
    if isinstance(op, LinearOp):
        return lambda: F.linear(x, weight, bias), torch.Tensor.double
    x, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (x, weight))
    padding = _even_padding(op)
    return lambda: F.conv2d(x, weight, bias, op.stride, padding, op.dilation), torch.Tensor.double


def torch_int8(layer: DenseLayer) -> tuple[Call, Read]:
    """PyTorch's quantised operators, by oneDNN."""
    if "onednn" in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = "onednn"
    op, y = layer.op, layer.y_affine
    q, scale = quantize_rows(layer.matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated, and PyTorch has no other int8 on CPUs
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        weight = torch.quantize_per_channel(
            layer.weight(q.double() * scale[:, None]).float(), scale, zeros, 0, torch.qint8
        )
        x = torch.quantize_per_tensor(layer.x, layer.x_affine.scale, layer.x_affine.zero_point, torch.quint8)
    operators = torch.ops.quantized
    read: Read = lambda result: result.dequantize().double()  # noqa: E731 - shared by both branches
    if isinstance(op, LinearOp):
        packed = operators.linear_prepack(weight, layer.bias)
        return lambda: operators.linear(x, packed, y.scale, y.zero_point), read
    x = x.contiguous(memory_format=torch.channels_last)
    packed = operators.conv2d_prepack(weight, layer.bias, op.stride, _even_padding(op), op.dilation, 1)
    return lambda: operators.conv2d(x, packed, y.scale, y.zero_point), read


def onnxruntime_int8(layer: DenseLayer) -> tuple[Call, Read]:
    """ONNX Runtime's quantised product or convolution."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    op, weight = layer.op, layer.weight(quantize_rows(layer.matrix)[0])
    scale = quantize_rows(layer.matrix)[1]
    arrays = {
        "x_scale": np.float32(layer.x_affine.scale),
        "x_zero": np.uint8(layer.x_affine.zero_point),
        "w": (weight.t() if isinstance(op, LinearOp) else weight).contiguous().numpy(),
        "w_scale": scale.float().numpy(),
        "w_zero": np.zeros(len(scale), np.int8),
        "bias": (layer.bias.double() / (scale * layer.x_affine.scale)).round().to(torch.int32).numpy(),
        "y_scale": np.float32(layer.y_affine.scale),
        "y_zero": np.uint8(layer.y_affine.zero_point),
    }
    first = ["x", "x_scale", "x_zero", "w", "w_scale", "w_zero"]
    own = "com.microsoft"
    if isinstance(op, LinearOp):
        node = helper.make_node("QGemm", [*first, "bias", "y_scale", "y_zero"], ["y"], domain=own)
        sizes = [op.tokens, op.in_features], [op.tokens, op.out_features]
    else:
        node = helper.make_node(
            "QLinearConv", [*first, "y_scale", "y_zero", "bias"], ["y"], domain=own,
            channels_last=1, pads=op.padding, strides=op.stride, dilations=op.dilation,
        )  # fmt: skip
        sizes = [op.batch, op.height, op.width, op.in_channels], [op.batch, *op.out_size, op.out_channels]
    x, y = (helper.make_tensor_value_info(name, TensorProto.UINT8, size) for name, size in zip("xy", sizes))
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()]
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(own, 1)])
    model.ir_version = 9  # the newest that every supported runtime reads
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = layer.threads, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": quantize(layer.channels_last(), layer.x_affine).numpy()}
    return lambda: session.run(None, feeds)[0], layer.read_uint8


def openvino_bfloat16(layer: DenseLayer) -> tuple[Call, Read]:
    """OpenVINO, told to compute in bfloat16."""
    import openvino as ov
    from openvino import opset13 as ops

    inputs = layer.channels_last().bfloat16()
    x = ops.parameter(list(inputs.shape), ov.Type.bf16)
    y = _openvino_layer(layer, ops.convert(x, "f32"), ops.constant(layer.weight(layer.matrix).numpy()))
    y = _channels_last(layer.op, ops.convert(y, "bf16"))
    call = _openvino_call(layer, x, y, inputs.view(torch.int16).numpy(), ov.Type.bf16, "bf16")

    def read(result: Any) -> torch.Tensor:
        values = torch.from_numpy(result.view(np.int16)).view(torch.bfloat16).double()
        return values if isinstance(layer.op, LinearOp) else values.permute(0, 3, 1, 2)

    return call, read


def openvino_int8(layer: DenseLayer) -> tuple[Call, Read]:
    """OpenVINO on the graph that it reads from a quantised network: dequantised operands, a quantised result."""
    import openvino as ov
    from openvino import opset13 as ops

    def scalar(value: float) -> Any:
        return ops.constant(np.float32(value))

    inputs = quantize(layer.channels_last(), layer.x_affine).numpy()
    q, scale = quantize_rows(layer.matrix)
    x = ops.parameter(list(inputs.shape), ov.Type.u8)
    values = ops.subtract(ops.convert(x, "f32"), scalar(layer.x_affine.zero_point))
    values = ops.multiply(values, scalar(layer.x_affine.scale))
    rows = scale.float().reshape(-1, *[1] * (1 if isinstance(layer.op, LinearOp) else 3))
    weight = ops.multiply(ops.convert(ops.constant(layer.weight(q).numpy()), "f32"), ops.constant(rows.numpy()))
    low, high = (layer.y_affine.scale * (q - layer.y_affine.zero_point) for q in (0, 255))
    y = ops.fake_quantize(
        _openvino_layer(layer, values, weight), scalar(low), scalar(high), scalar(0), scalar(255), 256
    )
    y = _channels_last(layer.op, ops.convert(y, "u8"))
    return _openvino_call(layer, x, y, inputs, ov.Type.u8, "f32"), layer.read_uint8


def _openvino_layer(layer: DenseLayer, x: Any, weight: Any) -> Any:
    """The product or convolution of x, channels last, and its bias."""
    from openvino import opset13 as ops

    op, bias = layer.op, layer.bias.numpy()
    if isinstance(op, LinearOp):
        return ops.add(ops.matmul(x, weight, False, True), ops.constant(bias[None]))
    top, left, bottom, right = op.padding
    images = ops.transpose(x, [0, 3, 1, 2])
    y = ops.convolution(images, weight, list(op.stride), [top, left], [bottom, right], list(op.dilation))
    return ops.add(y, ops.constant(bias[None, :, None, None]))


def _channels_last(op: Op, y: Any) -> Any:
    from openvino import opset13 as ops

    return y if isinstance(op, LinearOp) else ops.transpose(y, [0, 2, 3, 1])


def _openvino_call(
    layer: DenseLayer, x: Any, y: Any, inputs: npt.NDArray[Any], dtype: Any, precision: str
) -> _OpenvinoCall:
    import openvino as ov

    settings = {
        "INFERENCE_NUM_THREADS": layer.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = ov.Core().compile_model(ov.Model([y], [x]), "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(inputs, list(inputs.shape), dtype))
    return _OpenvinoCall(request, inputs)


@dataclass(frozen=True, slots=True, eq=False)
class _OpenvinoCall:
    request: Any
    inputs: npt.NDArray[Any]  # the request only points to them

    def __call__(self) -> Any:
        self.request.start_async()  # `infer` would spend tens of microseconds on Python objects
        self.request.wait()
        return self.request.get_output_tensor().data


def _even_padding(op: Conv2dOp) -> tuple[int, int]:
    """Raises MeasurementError for a convolution that PyTorch does not compute in one call."""
    top, left, bottom, right = op.padding
    if (top, left) != (bottom, right):
        raise MeasurementError(f"PyTorch pads both sides of an image alike, but got {op.key}")
    return top, left


@dataclass(frozen=True, slots=True)
class Peer:
    """A library's layer, and the packages that it imports."""

    make: Callable[[DenseLayer], tuple[Call, Read]]
    packages: tuple[str, ...] = ()


PEERS: Mapping[Format, Mapping[str, Peer]] = {
    BFLOAT16: {  # ONNX Runtime has no bfloat16 on x86
        "torch": Peer(torch_bfloat16),
        "openvino": Peer(openvino_bfloat16, ("openvino",)),
    },
    INT8: {
        "torch": Peer(torch_int8),
        "onnxruntime": Peer(onnxruntime_int8, ("onnxruntime", "onnx")),
        "openvino": Peer(openvino_int8, ("openvino",)),
    },
}


def installed(form: Format) -> tuple[str, ...]:
    """The libraries of PEERS for this format whose packages are here."""
    return tuple(
        name for name, peer in PEERS[form].items() if all(find_spec(package) is not None for package in peer.packages)
    )
