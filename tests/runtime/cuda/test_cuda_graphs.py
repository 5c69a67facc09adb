"""What becomes of a network's graph: traced, fused, stored and refused; kernels compute nothing here."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from emulated import ARCH, CPU, KERNELS, Recorded, build
from safetensors import safe_open
from safetensors.torch import save_file
from test_cuda_networks import Attention, Block1, blocks, image, seeded
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pruneaug.api.loading import load
from pruneaug.errors import CheckpointError, InputError, NetworkError
from pruneaug.kernels.cuda.program import Program
from pruneaug.kernels.cuda.shapes import ImageScalars, Scalars, parse_shape
from pruneaug.kernels.cuda.variants import VARIANTS, parse_cuda_variant
from pruneaug.network.ops import LinearOp
from pruneaug.profiler.cuda.cases import NETWORK_LAYOUTS, Group, shapes_of
from pruneaug.runtime.cuda.building import build_graph
from pruneaug.runtime.cuda.choice import block_of, largest_that_fills
from pruneaug.runtime.cuda.network import CudaNetwork, is_cuda_network, load_cuda_network
from pruneaug.runtime.cuda.operator import LoadedKernels, compute, scalars_of, sizes_of
from pruneaug.runtime.graph import layer_calls
from pruneaug.sparsity.masks import expand_blocks
from pruneaug.sparsity.patterns import Block


class Filling(LoadedKernels):
    """Kernels that write a number and keep what they were launched with."""

    def __init__(self, value=1.0):
        super().__init__()
        self.value, self.launched = value, []

    def launch(self, shape, scalars, arguments):
        self.launched.append((shape.key, scalars, arguments))
        arguments["y"].fill_(self.value)


@pytest.fixture
def filling(monkeypatch):
    """On the CPU the operator launches these."""
    kernels = Filling()
    monkeypatch.setattr(KERNELS, "launch", kernels.launch)
    return kernels


def network(graph, **options):
    programs = [
        Program(shape, ARCH, (("x", "pointer"),), 32, 0, b"cubin of " + shape.key.encode()) for shape in graph.shapes
    ]
    return CudaNetwork(graph, programs, recorder=Recorded(), kernels=LoadedKernels(), **options)


def perceptron():
    return seeded(lambda: nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16), nn.Linear(16, 10)))


MASKED = ["0", "2"]


def built(dtype="float32", **options):
    model = perceptron()
    return build(model, (image(4, 32),), blocks(model, MASKED, Block(16, 16)), dtype, **options)


def test_a_dense_layer_has_the_kernel_of_its_cell():
    """That which is compiled ahead, also with fewer columns than a tile has."""
    op = LinearOp(4, 32, 48)
    cell = shapes_of(Group(op, "bfloat16", "dense", 0.0), NETWORK_LAYOUTS, ARCH)
    variant = str(cell[0].variant)
    graph = build(perceptron(), (image(4, 32),), {}, "bfloat16", variants={"0": variant})
    (shape,) = graph.shapes
    assert replace(shape, activation="none") == cell[0]


@pytest.mark.parametrize(("plan", "chunk"), [("c16-", 16), ("", 32), ("c24-", 8)])
def test_a_pruned_layer_has_the_kernel_of_its_pattern_though_its_mask_has_wider_blocks(plan, chunk):
    """A chunk that does not divide the mask's blocks is of no use, but what divides both is."""
    model, variant = perceptron(), "t64n16k64s4w4x1"
    mask = torch.zeros(48, 32, dtype=torch.bool)
    mask[:16] = True
    graph = build(model, (image(4, 32),), {"0": mask}, "bfloat16", variants={"0": plan + variant})
    (shape,) = graph.shapes
    assert (shape.chunk, str(shape.variant)) == (chunk, variant)


def test_no_array_is_so_short_that_a_compiler_would_make_it_anew():
    held = dict(built().graph.named_buffers())
    (indptr, *_) = (tensor for name, tensor in held.items() if name.endswith("indptr"))
    assert len(indptr) == 9
    assert (indptr.diff() >= 0).all()


def test_what_is_packed_is_held_once():
    graph = built("bfloat16").graph
    held = dict(graph.named_parameters()) | dict(graph.named_buffers())
    assert {name for name in held if not name.startswith("_packed_")} == {"3.weight", "3.bias"}
    assert {held["3.weight"].dtype, held["3.bias"].dtype} == {torch.bfloat16}
    assert {held["_packed_0_bias"].dtype, held["_packed_0_weight"].dtype} == {torch.float32, torch.int32}


def test_two_calls_of_one_layer_share_its_weights():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x):
            return self.layer(F.gelu(self.layer(x)))

    model = seeded(Twice)
    graph = build(model, (image(3, 32),), blocks(model, ["layer"], Block(16, 16)))
    assert len(graph.shapes) == 2  # with gelu and without
    assert [name for name, _ in graph.graph.named_buffers() if name.endswith("indptr")] == ["_packed_0_indptr"]
    assert [layer.origin for layer in graph.report.layers] == ["linear, gelu", "linear"]


def test_the_model_stays_as_it_is():
    model = perceptron().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    build(model, (image(4, 32),), blocks(model, MASKED, Block(16, 16)), "float16")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_batch_norm_is_folded_in_the_precision_of_the_network():
    model = seeded(Block1)
    graph = build(model, (image(2, 8, 6, 6),), blocks(model, ["second"], Block(8, 8)), "bfloat16").graph
    scale = model.norm.weight.double() / (model.norm.running_var.double() + model.norm.eps).sqrt()
    want = (model.first.weight.double() * scale.view(-1, 1, 1, 1)).float().bfloat16()
    found = dict(graph.named_buffers())["_folded_0_weight"]
    assert torch.equal(found, want)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_sum_is_not_fused_where_others_read_what_is_added_or_it_is_broadcast():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.broadcast, self.ours = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            y = self.read(x)
            z = self.broadcast(x) + x[:1]
            return y + x, y * 2, z, F.hardtanh(torch.sigmoid(x + self.ours(x)), 0.1, 0.9)

    model = seeded(Sums)
    graph = build(model, (image(4, 16),), blocks(model, ["read", "broadcast", "ours"], Block(16, 16)))
    origins = {layer.name: layer.origin for layer in graph.report.layers}
    assert origins == {"read": "linear", "broadcast": "linear", "ours": "linear, add, sigmoid, hardtanh"}


def test_a_convolution_of_groups_stays_pytorchs_with_its_zeros_and_the_reason():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(16, 32, 3, groups=2)))
    masks = {"0": torch.rand(model[0].weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5}
    graph = build(model, (image(1, 16, 5, 5),), masks)
    (layer,) = graph.report.layers
    assert (layer.kernel, graph.shapes) == (None, ())
    assert "convolutions of 1 group" in layer.reason
    x = image(1, 16, 5, 5)
    want = F.conv2d(x, model[0].weight * masks["0"], model[0].bias, groups=2)
    torch.testing.assert_close(network(graph)(x), want)


def test_the_fake_operator_gives_what_the_real_one_gives(filling):
    for module, x in (
        (perceptron(), image(4, 32)),
        (seeded(Block1), image(2, 8, 7, 9)),
        (seeded(Attention), image(2, 5, 32)),
    ):
        names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
        graph = build(module, (x,), blocks(module, names, Block(8, 8)), "float16")
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = graph.graph(*(mode.from_tensor(value) for value in graph.static))
        real = graph.graph(*graph.static)
        assert [(y.shape, y.stride(), y.dtype) for y in fakes] == [(y.shape, y.stride(), y.dtype) for y in real]


def test_torch_compile_sees_one_graph_with_our_operator(filling):
    graph = built()
    seen = []

    def backend(traced, inputs):
        seen.append([str(node.target) for node in traced.graph.nodes if node.op == "call_function"])
        return traced.forward

    found = torch.compile(graph.graph, backend=backend, fullgraph=True, dynamic=False)(*graph.static)
    assert [target for target in seen[0] if "block_sparse" in target] == ["pruneaug.block_sparse.default"] * 2
    assert len(seen) == 1
    torch.testing.assert_close(found, graph.graph(*graph.static))


def test_kernels_are_launched_with_rows_of_whole_pieces(filling):
    model = seeded(lambda: nn.Sequential(nn.Linear(20, 10)))
    graph = build(model, (image(3, 20),), blocks(model, ["0"], Block(2, 4)), "bfloat16")
    result = network(graph)(image(3, 20))
    assert (result.shape, result.dtype, result.is_contiguous()) == ((3, 10), torch.float32, True)
    (_, scalars, arguments) = filling.launched[-1]
    assert (arguments["x"].shape, arguments["y"].shape) == ((3, 24), (3, 16))
    assert (scalars.x_stride, scalars.y_stride, scalars.tokens, scalars.outputs) == (24, 16, 3, 10)


def test_a_call_is_recorded_once_and_results_are_the_callers():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 4)))
    recorder = Recorded()
    ready = CudaNetwork(build(model, (image(2, 6),), {}), [], recorder=recorder, kernels=LoadedKernels())
    first = ready(image(2, 6))
    kept = first.clone()
    second = ready(image(2, 6) + 1)
    assert recorder.recorded == 1
    assert torch.equal(first, kept)
    torch.testing.assert_close(second, model(image(2, 6) + 1))
    assert torch.equal(ready.replay()[0], second)


@pytest.mark.parametrize("wrong", [(2, 5), (3, 6), (6,)])
def test_inputs_of_other_shapes_are_refused(wrong):
    ready = network(build(nn.Sequential(nn.Linear(6, 4)), (image(2, 6),), {}))
    assert ready.inputs == [("float32 [2, 6]",)]
    with pytest.raises(InputError, match=r"built for, \(float32 \[2, 6\]\), but got"):
        ready(torch.zeros(wrong))
    with pytest.raises(InputError, match="but got some by name: input"):
        ready(input=torch.zeros(2, 6))


def test_an_index_that_is_not_there_is_refused():
    ready = network(build(nn.Sequential(nn.Embedding(9, 4)), (torch.zeros(2, 3, dtype=torch.int64),), {}, "float16"))
    assert ready(torch.full((2, 3), 8)).dtype == torch.float32
    with pytest.raises(InputError, match=r"numbers from -?[0-9]+ to 8, but got 9"):
        ready(torch.full((2, 3), 9))


def test_wrong_arguments_are_named():
    model = perceptron()
    with pytest.raises(InputError, match=r"`dtype` on a GPU must be one of float16, .* but got 'bfloat'"):
        build(model, (image(4, 32),), {}, "bfloat")
    with pytest.raises(NetworkError, match="a layer must be the path of a module with a weight, but got 'O'"):
        build(model, (image(4, 32),), {"O": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(InputError, match="must be one of sm_80"):
        build_graph(model, (image(4, 32),), {}, dtype="float16", arch="sm_70", device=CPU)
    unused = nn.ModuleDict({"used": nn.Linear(4, 4), "other": nn.Linear(4, 4)})
    unused.forward = lambda x: unused["used"](x)
    with pytest.raises(NetworkError, match="'other' is none"):
        build(unused, (image(2, 4),), {"other": torch.ones(4, 4, dtype=torch.bool)})
    with pytest.raises(InputError, match="the variant chosen for layer '0' must be one of t64n16k64s4w4x1, but got"):
        built(choose=lambda op, weights, variants: parse_cuda_variant("t32n32k32s2w1x1"))


def test_kernels_are_those_that_were_named_or_chosen():
    asked = []

    def choose(op, weights, variants):
        asked.append((op, float(weights.mask.float().mean()), tuple(variants)))
        return variants[-1]

    first, second, _ = built(choose=choose, variants={"2": "t32n32k32s2w1x1"}).report.layers
    assert second.kernel.endswith("-t32n32k32s2w1x1")
    ((op, density, variants),) = asked
    assert (op, first.kernel.endswith(f"-{variants[-1]}")) == (LinearOp(4, 32, 48), True)
    assert density == pytest.approx(1 - first.zeros)


def test_the_rule_takes_the_largest_tile_that_leaves_every_multiprocessor_one():
    many, few = LinearOp(50432, 768, 3072), LinearOp(64, 768, 768)
    chosen = largest_that_fills(many, None, VARIANTS)
    assert chosen.tokens * chosen.outputs == max(variant.tokens * variant.outputs for variant in VARIANTS)
    assert str(largest_that_fills(few, None, VARIANTS)) == "t16n64k64s4w1x2"


@pytest.mark.parametrize("block", [Block(1, 1), Block(16, 4), Block(4, 16), Block(64, 64)])
def test_the_blocks_of_a_mask_are_found(block):
    shape = (128, 192)
    keep = torch.rand(block.grid(shape), generator=torch.Generator().manual_seed(0)) < 0.5
    assert block_of(expand_blocks(keep, block, shape)) == block


@pytest.mark.parametrize(
    "scalars", [Scalars(1, 2, 3, 4, 5, -1.0, float("inf")), ImageScalars(*range(5), 0.0, 6.0, *range(8))]
)
def test_sizes_and_clamp_make_the_scalars_again(scalars):
    image_of = "-image" * isinstance(scalars, ImageScalars)
    shape = parse_shape(f"float16-rows-c16-none{image_of}-t64n32k32s3w2x1")
    assert scalars_of(shape, sizes_of(scalars), [scalars.low, scalars.high]) == scalars


def test_a_kernel_that_nobody_added_is_named():
    with pytest.raises(InputError, match="the kernel float16-rows-c16-none-t64n32k32s3w2x1 must be compiled"):
        compute(
            LoadedKernels(), torch.zeros(4, 16, dtype=torch.float16), None, [torch.zeros(1)] * 4,
            "float16-rows-c16-none-t64n32k32s3w2x1", [4, 16, 16, 16, 16], [0.0, 1.0],
        )  # fmt: skip


def test_each_kernel_is_loaded_once_and_launched_on_the_current_stream():
    class Api:
        loaded = 0

        def load(self, program):
            self.loaded += 1
            return self

        def bind(self, launch, arguments):
            return streams.append

    streams, api = [], Api()
    stream = iter((5, 6))
    kernels = LoadedKernels(lambda: api, lambda: next(stream))
    graph = built()
    kernels.add([Program(shape, ARCH, (), 32, 0, b"") for shape in graph.shapes])
    for _ in range(2):
        kernels.launch(graph.shapes[0], Scalars(4, 48, 32, 32, 48, 0.0, 1.0), {})
    assert (api.loaded, streams) == (1, [5, 6])


def test_a_saved_network_is_loaded_with_its_kernels_and_computes_the_same(filling, tmp_path):
    path = tmp_path / "network.safetensors"
    saved = network(built("bfloat16"))
    saved.save(path)
    assert is_cuda_network(path)
    kernels = LoadedKernels()
    loaded = load_cuda_network(path, ARCH, CPU, recorder=Recorded(), kernels=kernels)
    assert (loaded.report, loaded.inputs) == (saved.report, saved.inputs)
    assert torch.equal(loaded(image(4, 32)), saved(image(4, 32)))
    assert kernels._programs == {program.shape.key: program for program in saved._programs}
    keys = [key for key, _, _ in filling.launched]
    assert keys == 4 * keys[:2]  # each network recorded its call, and repeated it


def test_images_are_held_with_their_channels_last_after_loading_too(filling, tmp_path):
    model = seeded(Block1)
    saved = network(build(model, (image(2, 8, 7, 9),), blocks(model, ["second"], Block(8, 8))))
    saved.save(tmp_path / "network")
    loaded = load_cuda_network(tmp_path / "network", ARCH, CPU, recorder=Recorded())
    for held in (saved, loaded):
        assert held._built.static[0].stride() == (8 * 63, 1, 72, 8)
        kernels = [call.weight for call in layer_calls(held._built.graph) if call.weight.dim() == 4]
        assert [kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels] == [True, True]
        assert not any(kernel.is_contiguous() for kernel in kernels[:1])
    torch.testing.assert_close(loaded(image(2, 8, 7, 9)), saved(image(2, 8, 7, 9)))


def test_a_saved_network_is_loaded_onto_any_device(tmp_path):
    class Positions(nn.Module):
        """With a constant, and a tensor that is made on the device."""

        def __init__(self):
            super().__init__()
            self.linear, self.weights = nn.Linear(32, 32), nn.Linear(32, 48)
            self.register_buffer("scale", torch.rand(32))

        def forward(self, x):
            return self.weights(self.linear(x) * self.scale + torch.arange(32, device=x.device))

    model = seeded(Positions)
    network(build(model, (image(4, 32),), blocks(model, ["weights"], Block(8, 8)))).save(tmp_path / "network")
    loaded = load_cuda_network(tmp_path / "network", ARCH, torch.device("meta"), recorder=Recorded())
    held = [*loaded._built.graph.buffers(), *loaded._built.graph.parameters(), *loaded._built.static]
    assert {tensor.device.type for tensor in held} == {"meta"}
    assert [y.device.type for y in loaded.replay()] == ["meta"]


def changed(path, **facts):
    with safe_open(str(path), "pt") as file:
        known = json.loads(file.metadata()["pruneaug-cuda-network"])
        tensors = {key: file.get_tensor(key) for key in {*known["programs"], "graph"}}
    save_file(tensors, str(path), {"pruneaug-cuda-network": json.dumps(known | facts)})


def test_a_file_for_another_gpu_or_version_or_of_something_else_is_refused(tmp_path):
    path = tmp_path / "network"
    network(built()).save(path)
    with pytest.raises(CheckpointError, match="for GPUs of architecture sm_80 and this one is sm_90a"):
        load_cuda_network(path, "sm_90a", CPU)
    changed(path, generator="0" * 12)
    with pytest.raises(CheckpointError, match="another version of pruneaug wrote it"):
        load_cuda_network(path, ARCH, CPU)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="must be a network that this version of pruneaug saved"):
        load_cuda_network(path, ARCH, CPU)
    assert not is_cuda_network(path)
    save_file({"x": torch.zeros(1)}, str(path))
    assert not is_cuda_network(path)
    assert not is_cuda_network(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_load_tells_a_gpus_network_apart_and_that_there_is_no_gpu(tmp_path):
    network(built()).save(tmp_path / "network")
    with pytest.raises(InputError, match="device 'cuda' needs a GPU that PyTorch can use, but"):
        load(tmp_path / "network")
