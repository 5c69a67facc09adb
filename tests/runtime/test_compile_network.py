"""Compiled networks against PyTorch in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from float64_networks import Model, assert_tree_close, conv, image, in_float64, random_masks, seeded
from torch import nn

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.variants import Variant
from pruneaug.network.layers import Layer, Network, find_layers
from pruneaug.network.ops import LinearOp
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.runtime.compiler import compile_network
from pruneaug.runtime.graph import export_program
from pruneaug.sparsity.masks import mask_sparsity
from pruneaug.sparsity.patterns import Block, LayerChoice


def check(model, inputs, builder, kernels, **values):
    """Compile dense and masked, compare with float64; `kernels` is the number of layer calls that are ours."""
    seeded(model)
    network = find_layers(model, inputs)
    program = export_program(model, inputs)
    for masks in ({}, random_masks(model, network)):
        compiled = compile_network(program, network, masks, values.get("plans", {}), builder.target)
        assert compiled.report.products == kernels
        assert_tree_close(compiled(*inputs), in_float64(model, masks, inputs))
    return compiled


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.first_norm = conv(8, 8, bias=False), nn.BatchNorm2d(8)
        self.second, self.second_norm = conv(8, 8, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        y = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(x + self.second_norm(self.second(y)))


def view_and_write(layers, x):
    y = layers["c"](x)
    flat = y.view(y.size(0), -1)
    flat[:, 0] = 7.0
    return y, flat


def read_memory(layers, x):
    return layers["c"](x).as_strided((2, 4 * 49), (4 * 49, 1))


def ignore_what_relu_returns(layers, x):
    y = layers["c"](x)
    F.relu_(y)
    return y.flatten(2).transpose(1, 2)


ONE_CONV = {"c": lambda: conv(3, 4)}
NETWORKS = {
    "conv, batch-norm, relu": (lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU()), 1),
    "conv, batch-norm, relu in place": (
        lambda: nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, 5, 1)),
        2,
    ),
    "batch-norm without weights": (lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, affine=False)), 1),
    "batch-norm without statistics": (
        lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, track_running_stats=False)),
        1,
    ),
    "residual": (lambda: nn.Sequential(conv(3, 8), Residual(), Residual()), 5),
    "relu6": (lambda: nn.Sequential(conv(3, 4), nn.ReLU6(), conv(4, 4), nn.Hardtanh(-0.5, 0.25, inplace=True)), 2),
    "functional relu6": (lambda: Model(lambda m, x: F.relu6(m["c"](x)), c=conv(3, 4)), 1),
    "clamps": (
        lambda: Model(
            lambda m, x: m["d"](m["c"](x).clamp(max=0.5)).clamp_min(-0.25).clamp(-0.1, 0.1), c=conv(3, 4), d=conv(4, 4)
        ),
        2,
    ),
    "clamp by a tensor": (lambda: Model(lambda m, x: m["c"](x).clamp(x.mean(), x.max()), c=conv(3, 4)), 1),
    "relu and its input both read": (
        lambda: Model(lambda m, x: (F.relu(y := m["c"](x)), y.sigmoid()), c=conv(3, 4)),
        1,
    ),
    "strides and dilation": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=(2, 1)), nn.Conv2d(8, 8, 2, padding="same", dilation=2), nn.ReLU(),
            nn.Conv2d(8, 4, 1, stride=3),
        ),
        3,
    ),
    "depthwise": (
        lambda: nn.Sequential(conv(3, 8, 1), nn.ReLU(), conv(8, 8, groups=8), nn.BatchNorm2d(8), conv(8, 4, 1)),
        3,
    ),
    "a layer called twice": (
        lambda: Model(lambda m, x: m["d"](F.relu(m["d"](m["c"](x)))), c=conv(3, 4), d=conv(4, 4)),
        3,
    ),
    "a layer called twice, each with its batch-norm": (
        lambda: Model(
            lambda m, x: m["b"](m["d"](F.relu(m["a"](m["d"](m["c"](x)))))),
            c=conv(3, 4), d=conv(4, 4), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4),
        ),
        3,
    ),
    "view of a convolution": (
        lambda: Model(lambda m, x: m["l"](F.relu(m["c"](x)).view(x.size(0), -1)), c=conv(3, 4), l=nn.Linear(196, 5)),
        2,
    ),
    "a write through a view": (lambda: Model(view_and_write, c=conv(3, 4)), 1),
    "a read of memory": (lambda: Model(read_memory, c=conv(3, 4)), 1),
    "an in-place relu whose result is not used": (lambda: Model(ignore_what_relu_returns, c=conv(3, 4)), 1),
    "pooling, flattening, dropout": (
        lambda: nn.Sequential(
            conv(3, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        ),
        2,
    ),
    "a mapping out": (lambda: Model(lambda m, x: {"y": (m["c"](x), [x + 1]), "x": x * 2}, c=conv(3, 4)), 1),
    "names that differ by a dot only": (
        lambda: Model(
            lambda m, x: m["ab"][1](m["ab"][0](m["n_0"](m["n"][0](x)))),
            n=nn.Sequential(conv(3, 4)), n_0=nn.BatchNorm2d(4), ab=nn.Sequential(conv(4, 4), nn.BatchNorm2d(4)),
        ),
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_network_computes_what_the_masked_network_does(builder, name):
    make, kernels = NETWORKS[name]
    check(make(), (image(2, 3, 7, 7),), builder, kernels)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (5, 6), (2, 5, 6), (2, 1, 5, 6)])
def test_linear_layers_take_inputs_of_any_number_of_dimensions(builder, shape):
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4, bias=False))
    check(model, (image(*shape),), builder, 2)


@pytest.mark.parametrize("tokens", [5, 6])
def test_a_batch_norm_over_the_tokens_of_a_linear_layer_is_not_folded(builder, tokens):
    check(nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(tokens)), (image(2, tokens, 7),), builder, 1)


def test_a_batch_norm_over_the_features_of_a_linear_layer_is_folded(builder):
    check(nn.Sequential(nn.Linear(7, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU()), (image(4, 7),), builder, 1)


def test_two_layers_whose_names_differ_by_a_dot_keep_their_own_folded_weights(builder):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.ModuleDict({"b": nn.Linear(5, 5)})
            self.a_b = nn.Linear(5, 5)
            self.first, self.second = nn.BatchNorm1d(5), nn.BatchNorm1d(5)

        def forward(self, x):
            return self.second(self.a_b(self.first(self.a["b"](x))))

    check(Nested(), (image(4, 5),), builder, 2)


def test_a_network_may_be_one_layer(builder):
    check(nn.Linear(6, 4), (image(3, 6),), builder, 1)


def test_a_single_image_needs_no_batch_dimension(builder):
    check(nn.Sequential(conv(3, 4), nn.ReLU()), (image(3, 7, 7),), builder, 1)


def test_weights_shared_with_another_layer_stay_dense(builder):
    model = seeded(nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4), conv(4, 3)))
    model[2].weight = model[0].weight
    assert check(model, (image(2, 4, 7, 7),), builder, 3).report.products == 3


def test_inputs_may_be_several_nested_and_of_whole_numbers(builder):
    model = Model(
        lambda m, ids, more: m["l"](m["e"](ids) + more["x"][0]), e=nn.Embedding(11, 6), l=nn.Linear(6, 4)
    )  # fmt: skip
    inputs = (torch.tensor([[1, 2, 3]]), {"x": [image(1, 3, 6)]})
    network = find_layers(seeded(model), inputs)
    compiled = compile_network(export_program(model, inputs), network, {}, {}, builder.target)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), model(*inputs))
    with pytest.raises(InputError, match=r"\(int64 \[1, 3\], float32 \[1, 3, 6\] of \['x'\]\[0\]\), but got \(int64"):
        compiled(inputs[0], {"x": [image(1, 4, 6)]})


def test_an_input_may_be_channels_last_or_need_a_gradient(builder):
    model = seeded(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4, 1)))
    x = image(2, 3, 7, 7)
    compiled = compile_network(export_program(model, (x,)), find_layers(model, (x,)), {}, {}, builder.target)
    want = compiled(x)
    assert torch.equal(compiled(x.to(memory_format=torch.channels_last)), want)
    assert torch.equal(compiled(x.clone().requires_grad_()), want)


@pytest.mark.parametrize("plan", ["", str(Variant(4, 2, 2)), str(Variant(16, 1, 7))])
def test_every_plan_computes_the_same(builder, plan):
    model, inputs = seeded(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4))), (image(2, 3, 7, 7),)
    network, program = find_layers(model, inputs), export_program(model, inputs)
    masks = {"2": random_masks(model, network)["2"]}
    compiled = compile_network(program, network, masks, {"0": plan, "2": plan}, builder.target)
    assert compiled.report.products == 2
    assert_tree_close(compiled(*inputs), in_float64(model, masks, inputs))


@pytest.mark.parametrize("block", [Block(1, 1), Block(4, 1), Block(8, 1), Block(16, 3)], ids=str)
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_a_grouped_convolution_is_pruned_in_blocks_of_any_height(builder, groups, block):
    """Also in blocks that reach into the next group, and with groups of fewer rows than a block."""
    model = seeded(nn.Sequential(conv(3, 12), nn.ReLU(), conv(12, 24, groups=groups), nn.ReLU(), conv(24, 4, 1)))
    inputs = (image(2, 3, 7, 7),)
    network = find_layers(model, inputs)
    masks = Magnitude().prune(model, network, {"2": LayerChoice(block, 0.75)}, None).masks
    assert mask_sparsity(masks["2"]) == pytest.approx(0.75, abs=0.05)
    compiled = compile_network(export_program(model, inputs), network, masks, {}, builder.target)
    assert compiled.report.products == 3
    assert_tree_close(compiled(*inputs), in_float64(model, masks, inputs))


def test_a_removed_weight_never_reaches_the_output(builder):
    model, inputs = seeded(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4))), (image(2, 3, 7, 7),)
    network = find_layers(model, inputs)
    masks = random_masks(model, network)
    want = in_float64(model, masks, inputs)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight[~mask] = math.nan
    compiled = compile_network(export_program(model, inputs), network, masks, {}, builder.target)
    assert_tree_close(compiled(*inputs), want)


def test_a_layer_without_any_weight_left_returns_its_bias(builder):
    model, inputs = seeded(nn.Sequential(conv(3, 4))), (image(1, 3, 7, 7),)
    masks = {"0": torch.zeros_like(model[0].weight, dtype=torch.bool)}
    compiled = compile_network(export_program(model, inputs), find_layers(model, inputs), masks, {}, builder.target)
    assert torch.equal(compiled(*inputs), model[0].bias.detach().view(1, 4, 1, 1).expand(1, 4, 7, 7))


def test_the_model_is_left_as_found_and_may_change_afterwards(builder):
    model = seeded(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), conv(8, 4)))
    model[3].eval()
    inputs = (image(2, 3, 7, 7),)
    network = find_layers(model, inputs)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    compiled = compile_network(export_program(model, inputs), network, random_masks(model, network), {}, builder.target)
    want = compiled(*inputs)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(compiled(*inputs), want)


@pytest.mark.parametrize(
    ("inputs", "described"),
    [
        ((image(1, 3, 7, 7),), r"\(float32 \[1, 3, 7, 7\]\)"),
        ((image(2, 3, 7, 8),), r"\(float32 \[2, 3, 7, 8\]\)"),
        ((image(2, 3, 7, 7).double(),), r"\(float64 \[2, 3, 7, 7\]\)"),
        ((), r"\(\)"),
        ((image(2, 3, 7, 7), 1), r"\(float32 \[2, 3, 7, 7\], 1\)"),
        ((None,), r"\(None\)"),
    ],
)
def test_other_inputs_than_the_compiled_ones_are_refused(builder, inputs, described):
    model, example = nn.Sequential(conv(3, 4)), (image(2, 3, 7, 7),)
    compiled = compile_network(export_program(model, example), find_layers(model, example), {}, {}, builder.target)
    with pytest.raises(InputError, match=rf"\(float32 \[2, 3, 7, 7\]\), but got {described}; compile it for these"):
        compiled(*inputs)


def test_a_layer_that_the_program_does_not_hold_is_a_compile_error(builder):
    model, example = nn.Sequential(nn.Linear(3, 4)), (image(2, 3),)
    network = Network((Layer("0", LinearOp(2, 3, 4)), Layer("1", LinearOp(2, 4, 4))))
    with pytest.raises(CompileError, match=r"but \['1'\] are not; exclude them with a rule `dense: true`"):
        compile_network(export_program(model, example), network, {}, {}, builder.target)


@pytest.mark.parametrize("model", [nn.Linear(3, 4), conv(3, 4)])
def test_a_program_of_another_batch_size_is_a_compile_error(builder, model):
    model = nn.Sequential(model)
    one, two = ((image(batch, 3, 3, 3),) for batch in (1, 2))
    with pytest.raises(
        CompileError, match=r"every call of layer '0' must compute .* but one has an input \[2, 3, 3, 3\]"
    ):
        compile_network(export_program(model, two), find_layers(model, one), {}, {}, builder.target)


def test_weights_of_another_dtype_are_refused(builder):
    model, example = nn.Sequential(nn.Linear(3, 4)).double(), (image(2, 3).double(),)
    with pytest.raises(InputError, match=r"float32 weights .* layer '0' has torch\.float64; call `model\.float\(\)`"):
        compile_network(export_program(model, example), find_layers(model, example), {}, {}, builder.target)


def test_masks_and_plans_of_unknown_layers_are_refused(builder):
    model, example = nn.Sequential(nn.Linear(3, 4)), (image(2, 3),)
    program, network = export_program(model, example), find_layers(model, example)
    mask = torch.ones(4, 3, dtype=torch.bool)
    for masks, plans in (({"1": mask}, {}), ({}, {"1": ""})):
        with pytest.raises(InputError, match=r"must name prunable layers, but got \['1'\]; the layers are \['0'\]"):
            compile_network(program, network, masks, plans, builder.target)
    with pytest.raises(InputError, match="bool mask of the same shape"):
        compile_network(program, network, {"0": mask.t()}, {}, builder.target)
