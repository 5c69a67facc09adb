"""Whole networks with our operator in them, run by the emulator, against masked networks in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from emulated import build, needs_gxx, on_cpu
from torch import nn

from pruneaug.network.layers import apply_masks, get_weight
from pruneaug.sparsity.masks import expand_blocks
from pruneaug.sparsity.matrix import weight_from_matrix, weight_matrix
from pruneaug.sparsity.patterns import Block

TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2, "tf32": 4e-3, "float32": 1e-5}


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def blocks(model, names, block, density=0.5):
    """Random masks of blocks for these layers."""
    generator, masks = torch.Generator().manual_seed(1), {}
    for name in names:
        weight = get_weight(model, name)
        shape = tuple(weight_matrix(weight).shape)
        keep = torch.rand(block.grid(shape), generator=generator) < density
        masks[name] = weight_from_matrix(expand_blocks(keep, block, shape), weight.shape)
    return masks


def assert_computes(model, inputs, masks, dtype="float32", compiled=False, **options):
    """Twice on different inputs; returns the network."""
    network = on_cpu(build(model, inputs, masks, dtype, **options), compiled=compiled)
    reference = copy.deepcopy(model)
    apply_masks(reference, masks)
    reference.double()
    for scale in (1.0, -0.5):
        given = tuple(x * scale for x in inputs)
        found = network(*given)
        with torch.no_grad():
            want = reference(*(x.double() for x in given))
        assert found.dtype == torch.float32
        error = (found.double() - want).norm() / want.norm()
        assert error <= TOLERANCE[dtype], float(error)
    return network


class Block1(nn.Module):
    """Two convolutions beside a shortcut, then a linear layer on what is left."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(8, 24, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.second = nn.Conv2d(24, 24, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 24, 1, stride=2)
        self.fc = nn.Linear(24, 10)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        y = F.relu(self.norm(self.first(x)))
        y = F.relu6(self.second(y) + self.shortcut(x))
        return self.fc(y.mean((2, 3)))


class Attention(nn.Module):
    """A small block of a vision transformer."""

    def __init__(self, width=32, heads=2):
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 64), nn.Linear(64, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        y = self.before(x)
        heads = [
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        joined = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.drop(self.out(joined))
        return self.drop(self.down(F.gelu(self.up(self.after(x))))) + x


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@needs_gxx
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["tf32", "float32"])
def test_a_perceptron(dtype):
    model = seeded(lambda: nn.Sequential(nn.Linear(20, 33), nn.GELU(), nn.Linear(33, 17), nn.ReLU(), nn.Linear(17, 3)))
    masks = blocks(model, ["0", "2"], Block(16, 4))
    network = assert_computes(model, (image(5, 20),), masks, dtype)
    first, second, last = network.report.layers
    assert (first.origin, second.origin, last.origin) == ("linear, gelu", "linear, relu", "linear")
    assert (first.kernel is None, second.kernel is None, last.kernel) == (False, False, None)
    assert first.zeros == pytest.approx(1 - float(masks["0"].double().mean()))


@needs_gxx
@pytest.mark.slow
def test_a_convolutional_network_with_a_residual():
    model = seeded(Block1)
    masks = blocks(model, ["first", "second", "shortcut"], Block(16, 8))
    network = assert_computes(model, (image(2, 8, 7, 9),), masks, "float16")
    origins = {layer.name: layer.origin for layer in network.report.layers}
    assert origins["first"] == "conv2d, relu"
    assert sorted([origins["second"], origins["shortcut"]]) == ["conv2d", "conv2d, add, relu6"]
    assert origins["fc"] == "linear"


@needs_gxx
@pytest.mark.slow
def test_a_block_of_a_vision_transformer():
    model = seeded(Attention)
    names = ["query", "key", "value", "out", "up", "down"]
    network = assert_computes(model, (image(2, 5, 32),), blocks(model, names, Block(16, 16)), "bfloat16")
    origins = {layer.name: layer.origin for layer in network.report.layers}
    assert origins == {
        "query": "linear", "key": "linear", "value": "linear", "out": "linear, add", "up": "linear, gelu",
        "down": "linear, add",
    }  # fmt: skip


@pytest.mark.slow
@needs_gxx
def test_torch_compile_fuses_what_is_between_the_kernels():
    """TorchInductor's own code, for the CPU, with the weights as constants."""
    layers = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    model = seeded(lambda: nn.Sequential(*layers, nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 5)))
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(2))
    masks = blocks(model, ["5"], Block(16, 16))
    network = assert_computes(model, (x,), masks, compiled=True)
    assert [layer.name for layer in network.report.layers if layer.kernel] == ["5"]
