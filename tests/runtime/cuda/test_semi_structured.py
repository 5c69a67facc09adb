"""2:4 layers by PyTorch's operator: it is called with the right arguments; what it computes is a stand-in's."""

import copy

import pytest
import torch
from emulated import CPU, Recorded, build
from semi_structured_on_cpu import ALGORITHM, as_it_is, operators
from test_cuda_graphs import image, network
from test_cuda_networks import Attention, Block1, blocks, seeded
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pruneaug.errors import CheckpointError, CompileError, InputError
from pruneaug.network.layers import apply_masks, get_weight
from pruneaug.runtime.cuda.network import load_cuda_network
from pruneaug.runtime.cuda.report import CudaReport
from pruneaug.runtime.cuda.semi_structured import compress
from pruneaug.sparsity.masks import block_mask
from pruneaug.sparsity.patterns import NM, TWO_OF_FOUR, Block

PRODUCT = torch.ops.aten._cslt_sparse_mm.default


@pytest.fixture(autouse=True)
def on_cpu():
    with operators():
        yield


def halves(model, names, pattern=TWO_OF_FOUR):
    return {name: block_mask(get_weight(model, name).detach().abs(), pattern, pattern.sparsity) for name in names}


def halved(model, inputs, names, dtype="bfloat16", **options):
    variants = dict.fromkeys(names, "torch-2:4")
    return build(model, inputs, halves(model, names), dtype, variants=variants, compress=as_it_is, **options)


def products(graph):
    return [node for node in graph.graph.graph.nodes if node.target == PRODUCT]


class Chain(nn.Module):
    """A layer without bias, one that is called twice, and one that reads a transposed tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Linear(32, 48, bias=False), nn.Linear(48, 48)
        self.last = nn.Linear(16, 32)

    def forward(self, x):
        y = torch.relu(self.twice(torch.nn.functional.gelu(self.twice(self.first(x)))))
        return self.last(y.transpose(1, 2)[:, ::3].transpose(1, 2).reshape(x.shape[0], -1, 16).transpose(0, 1))


@pytest.mark.parametrize("tokens", [3, 8])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_network_computes_what_its_masked_one_does(tokens, dtype):
    for model, x, names in (
        (seeded(Chain), image(2, tokens, 32), ["first", "twice", "last"]),
        (seeded(Attention), image(2, tokens, 32), ["query", "key", "value", "out", "up", "down"]),
    ):
        graph = halved(model, (x,), names, dtype)
        reference = copy.deepcopy(model)
        apply_masks(reference, halves(model, names))
        want = reference.double()(x.double()).detach()
        found = network(graph)(x).double()
        assert found.shape == want.shape
        assert float((found - want).norm() / want.norm()) < 3e-2
        assert {layer.kernel for layer in graph.report.layers if layer.name in names} == {"torch-2:4"}


def test_the_operator_gets_the_packed_weight_the_inputs_and_the_bias():
    model = seeded(lambda: nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16, bias=False)))
    graph = halved(model, (image(5, 32),), ["0", "2"])
    held = dict(graph.graph.named_buffers())
    assert set(held) == {"_two_of_four_0_weight", "_two_of_four_0_bias", "_two_of_four_1_weight"}
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    masked = (model[0].weight.detach() * halves(model, ["0"])["0"]).bfloat16()
    assert torch.equal(held["_two_of_four_0_weight"], masked)
    first, second = products(graph)
    assert [str(getattr(argument, "target", None)) for argument in first.args] == [
        "_two_of_four_0_weight", "aten.t.default", "_two_of_four_0_bias"
    ]  # fmt: skip
    assert second.args[2] is None
    assert first.kwargs == second.kwargs == {"transpose_result": True, "alg_id": ALGORITHM}
    targets = [str(node.target) for node in graph.graph.graph.nodes]
    assert "aten.relu.default" in targets
    assert "aten.linear.default" not in targets


def test_shapes_are_those_of_the_network_by_pytorchs_own_meta_function():
    model, x = seeded(Attention), image(2, 5, 32)
    graph = halved(model, (x,), ["query", "down"])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        (found,) = graph.graph(*(mode.from_tensor(value) for value in graph.static))
    assert (found.shape, found.dtype, found.is_contiguous()) == ((2, 5, 32), torch.bfloat16, True)


def test_what_pytorch_does_not_compute_stays_its_dense_layer_too(monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("told to refuse")

    monkeypatch.setattr(torch.ops.aten._cslt_sparse_mm_search, "default", refuse)
    graph = halved(seeded(Chain), (image(2, 3, 32),), ["first", "twice"])
    assert products(graph) == []
    assert {layer.reason for layer in graph.report.layers if layer.name == "twice"} == {
        "PyTorch must compute its 2:4 product, but raised: told to refuse"
    }


def test_calls_of_one_layer_share_the_packed_weight():
    graph = halved(seeded(Chain), (image(2, 3, 32),), ["twice"])
    weights = {str(node.args[0].target) for node in products(graph)}
    assert (len(products(graph)), weights) == (2, {"_two_of_four_0_weight"})


def test_our_kernels_compute_the_other_layers():
    model = seeded(lambda: nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 10)))
    masks = halves(model, ["0"]) | blocks(model, ["1"], Block(16, 16))
    report = build(
        model, (image(4, 32),), masks, "bfloat16", variants={"0": "torch-2:4"}, compress=as_it_is
    ).report  # fmt: skip
    kernels = [layer.kernel for layer in report.layers]
    assert (kernels[0], kernels[1].startswith("bfloat16-rows"), kernels[2]) == ("torch-2:4", True, None)
    assert report.summary == "1 of 3 layers by our kernels, 1 by PyTorch's 2:4 product, for sm_80 in bfloat16"
    assert CudaReport.from_json(report.to_json()) == report


def test_a_mask_that_keeps_more_is_refused():
    model = seeded(lambda: nn.Sequential(nn.Linear(32, 48)))
    masks = halves(model, ["0"])
    masks["0"][3, 4:7] = True
    with pytest.raises(InputError, match="the mask of layer '0' must keep at most two of each four columns to run as"):
        build(model, (image(4, 32),), masks, "bfloat16", variants={"0": "torch-2:4"}, compress=as_it_is)
    sparser = halves(model, ["0"], NM(1, 4))
    assert build(model, (image(4, 32),), sparser, "bfloat16", variants={"0": "torch-2:4"}, compress=as_it_is)


def test_what_pytorch_does_not_pack_stays_its_dense_layer_and_the_report_says_why():
    def refuse(weight):
        raise CompileError("told to refuse")

    model = seeded(Block1)
    of_channels = (torch.arange(24) % 4 < 2)[None, :, None, None].expand(24, 24, 3, 3)
    masks = halves(model, ["fc"]) | {"second": of_channels}
    variants = {"fc": "torch-2:4", "second": "torch-2:4"}
    graph = build(model, (image(2, 8, 6, 6),), masks, "bfloat16", variants=variants, compress=refuse)
    found = {layer.name: (layer.kernel, layer.reason) for layer in graph.report.layers if layer.zeros}
    assert found["fc"] == (None, "told to refuse")
    assert found["second"][0] is None
    assert "are of linear layers, but it is a convolution" in found["second"][1]
    assert (products(graph), graph.shapes) == ([], ())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_packed():
    with pytest.raises(CompileError, match=r"semi-structured weight, but raised: .*device= cpu is not supported"):
        compress(torch.zeros(32, 32, dtype=torch.bfloat16, device=CPU))


def test_a_saved_network_holds_the_packed_weight_and_computes_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 702)
    model, x = seeded(lambda: nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 10))), image(3, 32)
    saved = network(halved(model, (x,), ["0"]))
    saved.save(tmp_path / "network")
    loaded = load_cuda_network(tmp_path / "network", "sm_80", CPU, recorder=Recorded())
    assert loaded.report == saved.report
    assert len(products(loaded._built)) == 1
    assert torch.equal(loaded(x), saved(x))
    monkeypatch.setattr(torch.backends.cusparselt, "version", lambda: 800)
    with pytest.raises(CheckpointError, match="cuSPARSELt 702 has packed its weights and this one is 800"):
        load_cuda_network(tmp_path / "network", "sm_80", CPU)
