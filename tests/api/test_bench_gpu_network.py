"""`bench network` on a GPU: what is pruned and compiled, and what the result says; the GPU is a fake, kernels fill."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_flow import pruneaug

from pruneaug.api import bench_gpu_network as module
from pruneaug.api import gpu_networks
from pruneaug.api.bench_gpu_network import Pruning, bench_gpu_network, compile_gpu_network
from pruneaug.cli.gpu import network_facts
from pruneaug.cli.tables import bench_table
from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.cuda.program import Program, ProgramFolder
from pruneaug.platforms.cuda import Gpu
from pruneaug.platforms.gpu_state import GpuState
from pruneaug.profiler.cuda import programs as compiling
from pruneaug.profiler.local_gpu import LocalGpu

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime" / "cuda"))

from emulated import KERNELS, Recorded


class FakeDevice:
    torch_device = torch.device("cpu")
    gpu = Gpu("Fake GPU", "GPU-0", (8, 0), 108, 1 << 20, 1 << 30, driver="1.0", cuda="13.0")

    def times_us(self, runs):
        return [2000.0 * (i + 1) for i, run in enumerate(runs) if run() is not None]

    def state(self):
        return GpuState(1980.0, 2619.0, 300.0, 50.0, ("power limit",), "1.0")


@pytest.fixture
def fake(monkeypatch):
    """Kernels write zeros and are not compiled; neither does torch.compile."""
    compiled = []

    def programs(shapes, arch, folder, progress):
        compiled.extend(shapes)
        return [Program(shape, arch, (), 32, 0, b"") for shape in shapes]

    monkeypatch.setattr(KERNELS, "_programs", {})  # which other tests launch
    monkeypatch.setattr(KERNELS, "launch", lambda shape, scalars, arguments: arguments["y"].zero_())
    monkeypatch.setattr("pruneaug.profiler.local_gpu.compiled_programs", programs)
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    gpu = LocalGpu(make_device=lambda _: FakeDevice(), recorder=Recorded(), kernels=KERNELS)
    return SimpleNamespace(compiled=compiled, gpu=gpu)


def test_a_network_is_measured_beside_pytorchs(fake):
    pruning = Pruning("block:16x16", 0.5, ["blocks.*.conv2", "fc"])
    with pytest.raises(InputError, match=r"hold a block:16x16, but 'fc' matches none; the first are conv1, blocks"):
        bench_gpu_network("resnet20", pruning=pruning, gpu=fake.gpu)
    pruning = Pruning("block:16x16", 0.5, ["blocks.?.conv2"])
    result = bench_gpu_network("resnet20", pruning=pruning, batch=2, dtype="float16", rounds=1, gpu=fake.gpu)
    assert json.loads(json.dumps(result)) == result
    assert (result["pattern"], result["sparsity"], result["batch"]) == ("block:16x16", 0.5, 2)
    assert result["latency_ms"] == {"torch": 2.0, "torch-compile": 4.0, "pruneaug-dense": 6.0}
    assert result["skipped"] == {"tensorrt": "torch_tensorrt not installed; pip install torch-tensorrt"}
    ours = result["runtimes"][-1]
    assert (
        "its outputs' relative error in float16 must be at most 0.02" in ours["error"]
    )  # these kernels compute nothing
    kernels = {layer["name"] for layer in result["layers"] if layer["kernel"]}
    assert kernels == {f"blocks.{i}.conv2" for i in range(9)}
    assert {"name": "conv1", "reason": "its name matches none of blocks.?.conv2"} in result["kept_dense"]
    assert all(shape.image and shape.residual for shape in fake.compiled)
    assert result["warnings"] == ["clocks were held down by power limit; ratios within a run still compare"]
    assert bench_table(result)
    assert "9 of 22 layers by our kernels" in str(network_facts(result))


def test_the_projections_of_attention_are_pruned_by_their_names(fake, monkeypatch):
    options = {"batch": 1, "rounds": 1, "against": [], "gpu": fake.gpu}
    pytest.importorskip("transformers")
    code = "tests_gpu_bert:build"
    monkeypatch.setitem(sys.modules, "tests_gpu_bert", SimpleNamespace(build=small_bert))
    sample = module.Sample((8,), vocabulary=50)
    pruning = Pruning("block:16x16", 0.75, ["*.query", "*.key", "*.value", "*.output.dense", "*.intermediate.dense"])
    result = bench_gpu_network(code, pruning=pruning, sample=sample, trust_code=True, **options)
    ours = {layer["name"].rpartition("layer.0.")[2]: layer["origin"] for layer in result["layers"] if layer["kernel"]}
    assert ours == {
        "attention.self.query": "linear", "attention.self.key": "linear", "attention.self.value": "linear",
        "attention.output.dense": "linear, add", "intermediate.dense": "linear, gelu", "output.dense": "linear, add",
    }  # fmt: skip


def test_two_of_four_is_pytorchs_product_and_where_it_refuses_the_reason_is_told(fake, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setitem(sys.modules, "tests_gpu_bert", SimpleNamespace(build=small_bert))
    sample, pruning = module.Sample((8,), vocabulary=50), Pruning("nm:2:4", 0.9, ["*.intermediate.dense"])
    options = {"sample": sample, "pruning": pruning, "against": [], "rounds": 1, "trust_code": True, "gpu": fake.gpu}
    result = bench_gpu_network("tests_gpu_bert:build", **options)
    assert (result["pattern"], result["sparsity"]) == ("nm:2:4", 0.5)
    (layer,) = (layer for layer in result["layers"] if layer["zeros"])
    assert layer["zeros"] == 0.5
    assert "PyTorch must hold it as a semi-structured weight, but raised" in layer["reason"]  # without a GPU


def small_bert(vocab_size):
    from pruneaug.tasks.models.transformer import transformers

    config = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "vocab_size": vocab_size,
    }  # fmt: skip
    return transformers("BertForSequenceClassification", config)


def test_kernels_are_compiled_without_a_gpu(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "compile_ahead", lambda shapes, arch, folder, progress: asked.extend(shapes) or {})
    pruning = Pruning("block:16x16", 0.5, ["blocks.8.conv1"])
    result = compile_gpu_network("resnet20", "sm_90a", pruning=pruning, kernels=tmp_path)
    assert result == {"arch": "sm_90a", "kernels": 1, "failed": {}}
    assert (asked[0].form.name, asked[0].image, asked[0].residual) == ("bfloat16", True, False)


def test_a_kernel_that_does_not_compile_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "compile_ahead", lambda *args, **options: {"a-key": "it takes too much"})
    with pytest.raises(CompileError, match="the kernel a-key must compile for sm_80, but it takes too much"):
        compiling.compiled_programs([], "sm_80", ProgramFolder(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_compiling_needs_a_gpu():
    with pytest.raises(InputError, match="device 'cuda' needs a GPU that PyTorch can use, but"):
        gpu_networks.compile_for_gpu(torch.nn.Linear(4, 4), torch.zeros(1, 4))


def test_a_checkpoint_has_its_own_masks(fake, toy_at):
    folder = toy_at("exported") / "run" / "checkpoint"
    result = bench_gpu_network(str(folder), dtype="float32", rounds=1, trust_code=True, gpu=fake.gpu)
    assert any(layer["zeros"] > 0 and layer["kernel"] for layer in result["layers"])
    with pytest.raises(InputError, match="a checkpoint has its own masks and inputs"):
        bench_gpu_network(str(folder), pruning=Pruning(), gpu=fake.gpu)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, "`dtype` on a GPU must be one of float16"),
        ({"rounds": 0}, "`batch` and `rounds` must be at least 1"),
        ({"against": ["onnxruntime"]}, "runtimes of torch, torch-compile, tensorrt on a GPU"),
        ({"pruning": Pruning("block:0x1")}, "a pattern must be 'block:ROWSxCOLS'"),
    ],
)
def test_wrong_options_are_named(fake, options, message):
    with pytest.raises(InputError, match=message):
        bench_gpu_network("resnet20", gpu=fake.gpu, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_tells_that_there_is_no_gpu_and_what_is_for_one_only():
    ended = pruneaug("bench", "network", "resnet20", "--device", "cuda", "--layers", "*.conv2", "--dtype", "float16")
    assert (ended.code, "device 'cuda' needs a GPU that PyTorch can use, but" in ended.err) == (2, True)
    for words in (("--layers", "*"), ("--dtype", "float16")):
        ended = pruneaug("bench", "network", "resnet20", *words)
        assert (ended.code, "are for networks on a GPU" in ended.err) == (2, True)


@pytest.mark.parametrize("words", [("network", "resnet20"), ("kernels", "--op", "linear-t64-i64-o64")])
def test_a_gpu_may_be_named_by_its_number(words, monkeypatch):
    def asked(*values, index, **options):
        raise InputError(f"asked of GPU {index}")

    monkeypatch.setattr("pruneaug.cli.gpu.bench_gpu_network", asked)
    monkeypatch.setattr("pruneaug.cli.gpu.bench_gpu_kernels", asked)
    for device, index in (("cuda", 0), ("cuda:1", 1)):
        ended = pruneaug("bench", *words, "--device", device)
        assert (ended.code, f"asked of GPU {index}" in ended.err) == (2, True)
