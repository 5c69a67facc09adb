"""Operators without kernels of ours, against PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from regions import Function, assert_computes_what_pytorch_does, calls, compute, graph_of, region_module, run
from torch import nn

from pruneaug.errors import CompileError
from pruneaug.runtime.fallback import extract_region
from pruneaug.runtime.graph import export_program, program_graph


def floats(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def integers(*shape, low=-4, high=5):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(0))


def set_values(x):
    y = x.clone()
    y[:, 1:3] = 0
    y[0, -1, 0] = 5
    y[y > 1] = 2.0
    y[torch.tensor([0, 1]), torch.tensor([-1, 2])] = 7.0
    return y


FUNCTIONS = {
    "einsum": lambda x: (torch.einsum("bij,bkj->bik", x, x), torch.einsum("bij->ij", x)),
    "cumsum": lambda x: (x.cumsum(1), x.cumsum(-1), (x > 0).cumsum(1), (x > 0).int().cumsum(1)),
    "roll": lambda x: (x.roll((1, -2), (1, 2)), x.roll(3)),
    "top k": lambda x: (*x.topk(3, 1), *x.topk(2, 0, largest=False)),
    "sort": lambda x: (*x.sort(1), x.argsort(-1, descending=True), x.sort(stable=True)[0]),
    "argmax": lambda x: (x.argmax(-1), x.argmax(), x.argmin(1, keepdim=True)),
    "extrema": lambda x: (*x.max(1), *x.min(2), x.amax((1, 2)), x.amin(0), x.max(), x.min()),
    "scalars": lambda x: (x.mean(), x.sum(), x.prod(), (x > 0).any(), (x > 0).all()),
    "norms": lambda x: (x.norm(dim=1), x.norm(p=1, dim=2), x.norm(), F.normalize(x), *torch.var_mean(x, 1), x.std()),
    "index select": lambda x: (x.index_select(1, torch.tensor([0, 3])), x.gather(2, torch.zeros(2, 6, 2).long())),
    "negative indices": lambda x: (x[:, -1], x[:, :-1], x[..., -3:], x[:, torch.tensor([0, -2])]),
    "several indices": lambda x: (
        x[:, torch.tensor([0, 2]), torch.tensor([1, 4])],
        x[torch.tensor([0, 1]), :, torch.tensor([1, -1])],
        x[torch.tensor([[0], [1]]), torch.tensor([[0, 1, 2]])],
    ),
    "assignment": set_values,
    "scatter": lambda x: (
        x.scatter_add(1, torch.ones(2, 3, 5).long(), x),
        x.scatter(1, torch.ones(2, 1, 5).long(), 3.0),
    ),
    "index add": lambda x: x.index_add(1, torch.tensor([0, 2, 0]), x[:, :3]),
    "unfold": lambda x: (x.unfold(1, 3, 2), F.unfold(x[:, None], 2, padding=1)),
    "fold": lambda x: F.fold(F.unfold(x[:, None], 2), (6, 5), 2),
    "shapes": lambda x: (
        x.permute(2, 0, 1),
        x.transpose(1, 2).reshape(2, -1),
        x[:, None].expand(2, 3, 6, 5),
        x.flip(1),
    ),
    "pieces": lambda x: (*x.split([1, 5], 1), *x.chunk(2, 1), *x.unbind(1)[:2], torch.stack([x, x], -1)),
    "padding": lambda x: (F.pad(x, (1, 2), value=3.0), F.pad(x, (2, 1), mode="reflect"), F.pad(x, (-1, 2))),
    "sums": lambda x: (
        torch.add(x, x, alpha=2),
        torch.sub(x, 1, alpha=3),
        1 - x,
        torch.addmm(x[0], x[0], x[0, :5], beta=2),
    ),
    "activations": lambda x: (F.selu(x), F.elu(x, 0.3), F.mish(x), F.hardswish(x), F.softplus(x), F.logsigmoid(x)),
    "clamps": lambda x: (x.clamp(max=0.1), x.clamp_min(-0.2), x.clamp(torch.zeros(5), torch.ones(5)), F.relu6(x)),
    "scatter of values": lambda x: x.scatter(1, torch.full((2, 3, 5), 2), x[:, :4]),
    "products": lambda x: (
        torch.baddbmm(x[:, :, :1], x, x.transpose(1, 2), beta=0.5, alpha=2),
        torch.addmv(x[0, :, 0], x[0], x[0, 0], beta=2),
    ),
    "roots": lambda x: (x.abs().rsqrt(), x.abs() ** 0.5, x**3, 2.0**x, torch.erfc(x), torch.hypot(x, x)),
    "softmax": lambda x: (x.softmax(1), x.log_softmax(-1), x.logsumexp(-1), torch.logaddexp(x, -x)),
    "comparisons": lambda x: (
        (x > 0) == (x < 1),
        (x > 0) & (x < 1),
        ~(x > 0),
        torch.isfinite(x / x.relu()),
        (x > 0) ^ True,
    ),
    "where": lambda x: (torch.where(x > 0, x, 0.0), torch.where(x > 0, 1, 0), torch.where(x > 0, x, torch.tensor(1))),
    "masked fill": lambda x: x.masked_fill(x > 0, float("-inf")),
    "mixed dtypes": lambda x: (x * (x > 0), x * torch.arange(5), torch.cat([x, torch.ones(2, 1, 5).int()], 1)),
    "distances": lambda x: (torch.cdist(x, x * 2), F.cosine_similarity(x, x + 1), F.pairwise_distance(x[0], x[1])),
    "casts": lambda x: (x.double(), x.long(), x.bool(), x.half().float()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_floats_is_computed(name):
    assert_computes_what_pytorch_does(Function(FUNCTIONS[name]), floats(2, 6, 5))


INTEGERS = {
    "arithmetic": lambda i: (i + 0.5, i * 2, i / 2, 3 / (i.abs() + 1), 3 - i, i.float().mean()),
    "division": lambda i: (i // 3, i % 3, torch.div(i, 3, rounding_mode="trunc"), i // (i.abs() + 1), torch.fmod(i, 3)),
    "functions": lambda i: (i.abs().sqrt(), i.exp(), i.sigmoid(), i.clamp(-1, 2), i.clamp_min(0), i**2),
    "clamps": lambda i: (i.clamp(min=0.5), i.clamp(torch.tensor(-1), torch.tensor(2)), i.int().clamp(-1, 2), i.relu()),
    "comparisons": lambda i: (i >= 0, i == 1.0, (i > 0) | (i < -2), i.any(1), (i > -9).all(-1), i.bool()),
    "bits": lambda i: (i & 3, i | 4, i ^ 5, i << 2, i >> 1, ~i),
    "products": lambda i: i @ i.transpose(1, 2),
    "reductions": lambda i: (i.sum(1), i.int().sum(1), i.amin(1), i.argmax(1), i.max(1)[0], i.prod(2)),
    "where": lambda i: (torch.where(i > 0, i, 0), torch.where(i > 0, i, 0.5), torch.where(i > 0, i.float(), -1.0)),
    "embedding": lambda i: (F.embedding(i.abs(), torch.arange(18.0).view(9, 2)), F.one_hot(i.abs(), 9)),
    "positions": lambda i: torch.cumsum(i.ne(1).int(), 1).type_as(i) * i.ne(1) + 1,
    "attention mask": lambda i: (1.0 - (i > 0)[:, None].float()) * torch.finfo(torch.float32).min,
}


@pytest.mark.parametrize("name", INTEGERS)
def test_a_function_of_integers_is_computed(name):
    assert_computes_what_pytorch_does(Function(INTEGERS[name]), integers(2, 6, 5))


INF = float("inf")
NOT_FINITE = {
    "rectifiers": lambda x: (F.relu(x), F.relu6(x), F.hardtanh(x), F.hardsigmoid(x), F.elu(x), F.selu(x)),
    "clamps": lambda x: (x.clamp(-1, 1), x.clamp(min=0), x.clamp_max(0.5), x.clamp(torch.zeros(5), torch.ones(5))),
    "sums of exponentials": lambda x: torch.logaddexp(x[:, None], torch.tensor([0.5, 7.0, INF, -INF])),
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_nan_and_infinities_are_kept(name):
    x = torch.tensor([0.5, -3.0, float("nan"), INF, -INF])
    model = Function(NOT_FINITE[name])
    torch.testing.assert_close(compute(model, x), torch.utils._pytree.tree_leaves(model(x)), equal_nan=True)


IMAGES = {
    "pixel shuffle": (lambda x: (F.pixel_shuffle(x, 2), F.channel_shuffle(x, 2)),),
    "nearest": (
        lambda x: (
            F.interpolate(x, scale_factor=2),
            F.interpolate(x, size=(7, 10)),
            F.interpolate(x, scale_factor=0.5),
        ),
    ),
    "bilinear": (
        lambda x: (
            F.interpolate(x, scale_factor=1.7, mode="bilinear"),
            F.interpolate(x, size=(5, 13), mode="bilinear", align_corners=True),
        ),
    ),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),),
    "grid sample": (lambda x: F.grid_sample(x, torch.tanh(x[:, :2].permute(0, 2, 3, 1)), align_corners=False),),
    "grouped convolution": (lambda x, layer: layer(x), nn.Conv2d(4, 6, 3, padding=1, groups=2)),
    "depthwise convolution": (lambda x, layer: layer(x), nn.Conv2d(4, 4, 3, padding=1, groups=4, stride=2)),
    "same convolution": (lambda x, layer: layer(x), nn.Conv2d(4, 3, (3, 4), padding="same")),
    "convolution 1d": (lambda x, layer: layer(x.flatten(2)), nn.Conv1d(4, 6, 3, padding=2, dilation=2)),
    "transposed convolution": (
        lambda x, layer: layer(x),
        nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
    ),
    "grouped transposed convolution": (lambda x, layer: layer(x), nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2)),
    "group norm": (lambda x, layer: (layer(x), F.group_norm(x + 100, 4)), nn.GroupNorm(2, 4)),
    "instance norm": (lambda x, layer: (layer(x), F.instance_norm(x)), nn.InstanceNorm2d(4, affine=True)),
    "layer norm": (lambda x, layer: (layer(x), F.layer_norm(x, (7,))), nn.LayerNorm((9, 7))),
    "batch norm": (lambda x, layer: layer(x), nn.BatchNorm2d(4)),
    "max pooling": (lambda x: (F.max_pool2d(x, 3, 2, 1, ceil_mode=True), F.adaptive_max_pool2d(x, (3, 7))),),
    "average pooling": (
        lambda x: (
            F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
            F.avg_pool2d(x, 3, 2, 1, divisor_override=4),
            F.adaptive_avg_pool2d(x, (5, 4)),
        ),
    ),
    "linear": (lambda x, layer: layer(x), nn.Linear(7, 32)),
    "attention": (
        lambda x: (
            F.scaled_dot_product_attention(x, x, x, is_causal=True),
            F.scaled_dot_product_attention(x, x, x, x[..., :1] > 0),
            F.scaled_dot_product_attention(x, x, x, x @ x.transpose(-1, -2), scale=0.3),
        ),
    ),
}


SLOW = ("bicubic", "bilinear")  # to compile


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in IMAGES]
)
def test_a_function_of_images_is_computed(name):
    function, *layers = IMAGES[name]
    tolerance = 3e-5 if name == "group norm" else 1e-5  # with a mean that is a hundred times the deviation
    assert_computes_what_pytorch_does(Function(function, *layers), floats(2, 4, 9, 7), tolerance=tolerance)


@pytest.mark.parametrize(
    "inputs", [(floats(), floats(2, 3)), (integers(2, 3) > 0, floats(3)), (integers(), integers(3))]
)
def test_tensors_of_no_dimension_and_of_any_dtype_are_inputs_and_outputs(inputs):
    assert_computes_what_pytorch_does(Function(lambda a, b: (a * b, a == b, a + 1)), *inputs)


def test_a_region_is_a_part_of_a_graph():
    def function(x, y):
        y = torch.sin(x) + y
        first, second = y.split(2)
        return torch.cumsum(y, 0) * first.mean() + second.mean()

    graph = graph_of(Function(function), floats(4, 3), floats(3))
    nodes = calls(graph)
    region = extract_region(graph, nodes[1:-3])
    assert [node.name for node in region.inputs] == ["sin", "inputs_1"]
    assert all(any(user in nodes[-3:] for user in node.users) for node in region.outputs)
    inputs = (floats(4, 3).sin(), floats(3))
    results = run(region_module(region), *inputs)
    for result, expected in zip(results, region.module(*inputs), strict=True):
        torch.testing.assert_close(result, expected)


def test_constants_that_are_views_of_others_are_read_as_they_are():
    table = floats(6, 5)
    model = Function(lambda x: x @ table.t()[:, ::2] + table[1, :3])
    assert_computes_what_pytorch_does(model, floats(4, 5))


def test_an_operator_that_tvm_lacks_is_an_error_that_names_it_and_its_layer():
    class Layer(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).abs()

    graph = graph_of(nn.Sequential(nn.ReLU(), Layer()), floats(2, 8))
    with pytest.raises(CompileError, match=r"aten\.fft_rfft\.default of layer '1' is not: TVM has no .*in the model"):
        region_module(extract_region(graph, calls(graph)))


def test_an_operator_that_tvm_takes_for_another_is_an_error():
    graph = graph_of(Function(lambda x: F.max_pool2d(x, 2, return_indices=True)[1]), floats(1, 2, 6, 6))
    with pytest.raises(CompileError, match=r"max_pool2d_with_indices.*float32 \[1, 2, 3, 3\] instead of int64"):
        region_module(extract_region(graph, calls(graph)))


def test_shapes_that_depend_on_values_are_an_error():
    graph = graph_of(Function(lambda x: x.nonzero()), floats(5))
    with pytest.raises(CompileError, match="all shapes must be known when a network is compiled"):
        extract_region(graph, calls(graph))


def test_a_region_that_changes_its_input_is_an_error():
    graph = program_graph(export_program(Function(lambda x: torch.relu_(x.sin())), (floats(5),)))
    with pytest.raises(CompileError, match="make the graph functional first"):
        region_module(extract_region(graph, calls(graph)[1:]))
