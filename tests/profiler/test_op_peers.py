"""The libraries that single layers are compared with: what they compute, and that they compute all that is counted."""

import pytest
import torch

from pruneaug.errors import InputError, MeasurementError
from pruneaug.kernels.cold import cold_copies
from pruneaug.kernels.lowp.formats import affine_of
from pruneaug.network.ops import Conv2dOp, LinearOp
from pruneaug.profiler import op_peers, runtimes
from pruneaug.profiler.op_data import OpData
from pruneaug.profiler.op_peers import PEERS, DenseLayer, absent_peer, check_peers, onnx_runtime
from pruneaug.profiler.op_peers.layer import cold_weights
from pruneaug.profiler.reference import Reference

LINEAR = LinearOp(37, 64, 48)
CONV = Conv2dOp(2, 16, 24, 9, 11, (3, 3), padding=(1, 1, 1, 1))
OPS = {
    "linear": LINEAR,
    "token": LinearOp(1, 24, 40),
    "conv2d": CONV,
    "strided": Conv2dOp(1, 16, 32, 9, 11, (3, 2), stride=(2, 1), padding=(1, 0, 1, 0)),
    "padded": Conv2dOp(1, 5, 24, 7, 9, (2, 3), padding=(0, 1, 1, 2)),
    "dilated": Conv2dOp(1, 16, 24, 12, 11, (3, 3), padding=(2, 2, 2, 2), dilation=(2, 2)),
    "grouped": Conv2dOp(1, 6, 24, 7, 9, (3, 3), padding=(1, 1, 1, 1), groups=3),
}
LARGEST_ERROR = {"float32": 1e-5, "bfloat16": 0.005, "int8": 0.03}


def layer_of(op):
    data = OpData(op)
    y = data.output(data.mask(None, 0.0, 0))
    return DenseLayer(op, data.matrix, data.bias, data.x, 1, affine_of(data.x), affine_of(y))


def made(dtype, name, layer):
    if reason := absent_peer(name, dtype):
        pytest.skip(reason)
    with torch.inference_mode():
        return PEERS[dtype][name].make(layer)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("dtype", "name"), [(dtype, name) for dtype in PEERS for name in PEERS[dtype]])
def test_a_library_computes_the_layer_but_for_rounding(dtype, name, op):
    if op == "grouped" and dtype != "float32":
        pytest.skip("layers in reduced precision have no groups")
    if (op, dtype, name) == ("padded", "int8", "torch"):
        pytest.skip("it pads both sides alike")
    layer = layer_of(OPS[op])
    call = made(dtype, name, layer)
    reference = Reference(OPS[op], layer.x, torch.Generator())
    with torch.inference_mode():
        for _ in range(2):
            error = reference.relative_error(call.read(call.run()), layer.matrix, layer.bias)
            assert error < LARGEST_ERROR[dtype]


def test_pytorch_says_which_padding_it_lacks():
    with pytest.raises(MeasurementError, match="PyTorch pads both sides of an image alike in int8, but got conv2d-"):
        PEERS["int8"]["torch"].make(layer_of(OPS["padded"]))


@pytest.mark.parametrize("shape", [(3, 2), (64, 40), (500, 800)])
def test_weights_that_make_a_library_fetch_them_again_are_all_different(shape):
    weights = cold_weights(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert len(weights) == min(cold_copies(weights[0].nbytes), weights[0].numel())
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == len(weights)
    for weight in weights:
        assert weight.flatten().sort().values.equal(weights[0].flatten().sort().values)


@pytest.mark.parametrize("op", [LINEAR, CONV], ids=["linear", "conv2d"])
@pytest.mark.parametrize("dtype", PEERS)
def test_openvino_computes_every_layer_that_is_counted(dtype, op):
    call = made(dtype, "openvino", layer_of(op))
    request = call.run._request
    kinds = [
        node.get_rt_info()["layerType"].astype(str)
        for node in request.get_compiled_model().get_runtime_model().get_ops()
    ]
    ending = 1 if dtype == "bfloat16" else 0
    assert call.layers > 1
    assert kinds.count("FullyConnected" if op is LINEAR else "Convolution") == call.layers + ending


@pytest.mark.parametrize("op", [LINEAR, CONV], ids=["linear", "conv2d"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_onnx_runtime_computes_every_layer_that_is_counted(dtype, op, tmp_path, monkeypatch):
    if reason := absent_peer("onnxruntime", dtype):
        pytest.skip(reason)
    import onnx
    import onnxruntime as ort

    def session(model, threads):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnx_runtime, "onnxruntime_session", session)
    call = made(dtype, "onnxruntime", layer_of(op))
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert call.layers > 1
    assert sum(kinds.count(kind) for kind in ("Gemm", "QGemm", "Conv", "QLinearConv")) == call.layers


def test_a_library_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(runtimes, "find_spec", lambda package: None)
    assert absent_peer("torch", "int8") is None
    assert absent_peer("openvino", "float32") == "openvino not installed; pip install 'pruneaug[peers]'"


def test_an_unknown_library_is_one_error_that_lists_those_of_the_dtype():
    for dtype, libraries in PEERS.items():
        check_peers(list(libraries), dtype)
    with pytest.raises(InputError, match="libraries of torch, openvino for bfloat16, but got onnxruntime"):
        check_peers(["torch", "onnxruntime"], "bfloat16")


def test_versions_are_those_of_the_libraries_packages():
    assert op_peers.peer_versions(["torch"], "float32") == {}
    assert set(op_peers.peer_versions(["onnxruntime"], "float32")) <= {"onnxruntime", "onnx"}
