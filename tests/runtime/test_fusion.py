"""Batch-norms folded into the layers before them, against float64; clamps taken from the graph."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruneaug.errors import CompileError
from pruneaug.runtime.functional import functional_graph
from pruneaug.runtime.fusion import clamp_bounds, fold_batchnorms
from pruneaug.runtime.graph import export_program, layer_calls, program_graph

INFINITE = math.inf


def normed(layer, norm):
    """The two in a row, with batch-norm statistics that make rounding visible."""
    generator = torch.Generator().manual_seed(3)
    norm.running_mean.normal_(std=10.0, generator=generator)
    norm.running_var.uniform_(1e-4, 10.0, generator=generator)
    if norm.affine:
        nn.init.normal_(norm.weight, generator=generator)
        nn.init.normal_(norm.bias, generator=generator)
    return nn.Sequential(layer, norm)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["conv", "linear", "depthwise"])
def test_folding_is_exact_but_for_the_last_rounding(kind, bias, affine):
    make, norm, shape = {
        "conv": (lambda: nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d, (2, 3, 5, 5)),
        "linear": (lambda: nn.Linear(3, 8, bias=bias), nn.BatchNorm1d, (4, 3)),
        "depthwise": (lambda: nn.Conv2d(8, 8, 3, bias=bias, groups=8), nn.BatchNorm2d, (2, 8, 5, 5)),
    }[kind]
    model = normed(make(), norm(8, affine=affine, eps=1e-3))
    graph = program_graph(export_program(model, (torch.zeros(shape),)))
    assert fold_batchnorms(graph) == 1
    (call,) = layer_calls(graph)
    assert call.name == "0"
    layer, norm = model.double()
    factor = 1 / torch.sqrt(norm.running_var.double() + 1e-3) * (norm.weight if affine else 1.0)
    weight = layer.weight * factor.view(-1, *[1] * (layer.weight.dim() - 1))
    shift = ((layer.bias if bias else 0.0) - norm.running_mean) * factor + (norm.bias if affine else 0.0)
    for got, want in ((call.weight, weight), (call.bias, shift)):
        torch.testing.assert_close(got.double(), want.detach(), rtol=2.0**-23, atol=1e-37)


class Branches(nn.Module):
    """A convolution whose result is normalised and also read as it is."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


@pytest.mark.parametrize(
    "model",
    [
        Branches(),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)),
    ],
)
def test_a_batch_norm_that_is_not_the_only_reader_or_has_no_statistics_stays(model):
    assert fold_batchnorms(program_graph(export_program(model, (torch.zeros(2, 3, 5, 5),)))) == 0


class Clamped(nn.Module):
    def __init__(self, clamp):
        super().__init__()
        self.layer, self._clamp = nn.Linear(3, 4), clamp

    def forward(self, x):
        return self._clamp(self.layer(x))


@pytest.mark.parametrize(
    ("clamp", "bounds"),
    [
        (F.relu, (0.0, INFINITE)),
        (lambda y: F.relu(y, inplace=True), (0.0, INFINITE)),
        (torch.relu_, (0.0, INFINITE)),
        (F.relu6, (0.0, 6.0)),
        (nn.ReLU6(inplace=True), (0.0, 6.0)),
        (F.hardtanh, (-1.0, 1.0)),
        (lambda y: F.hardtanh(y, min_val=-2.0, max_val=0.5), (-2.0, 0.5)),
        (lambda y: y.clamp(max=3), (-INFINITE, 3.0)),
        (lambda y: torch.clamp(y, min=-1.5), (-1.5, INFINITE)),
        (lambda y: y.clamp_(-1, 2), (-1.0, 2.0)),
        (lambda y: y.clamp_min(0.5), (0.5, INFINITE)),
        (lambda y: y.clamp_max(0.5), (-INFINITE, 0.5)),
    ],
)
def test_relus_and_clamps_are_known_by_their_bounds(clamp, bounds):
    graph = functional_graph(export_program(Clamped(clamp), (torch.zeros(2, 3),)))
    (call,) = layer_calls(graph)
    (user,) = call.node.users
    assert clamp_bounds(user) == bounds


@pytest.mark.parametrize(
    "clamp",
    [
        lambda y: y,
        torch.sigmoid,
        F.leaky_relu,
        lambda y: torch.clamp(y, torch.tensor(0.0), torch.tensor(1.0)),
        lambda y: torch.maximum(y, torch.zeros_like(y)),
    ],
)
def test_what_is_no_clamp_to_numbers_has_no_bounds(clamp):
    graph = functional_graph(export_program(Clamped(clamp), (torch.zeros(2, 3),)))
    (call,) = layer_calls(graph)
    assert all(clamp_bounds(user) is None for user in call.node.users if user.op == "call_function")


class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


def test_a_module_that_cannot_be_exported_is_a_compile_error_and_keeps_its_mode():
    model = Undecided().train()
    model.layer.eval()
    with pytest.raises(
        CompileError, match=r"must be exportable by torch\.export, but Undecided is not: .*remove data-"
    ):
        export_program(model, (torch.zeros(2, 3),))
    assert (model.training, model.layer.training) == (True, False)


def test_layer_calls_name_the_layers_in_the_order_of_execution():
    model = nn.ModuleDict({"b": nn.Linear(3, 3), "a": nn.Sequential(nn.Linear(3, 3))})
    model.forward = lambda x: model["b"](model["a"](model["b"](x)))
    calls = list(layer_calls(program_graph(export_program(model, (torch.zeros(2, 3),)))))
    assert [call.name for call in calls] == ["b", "a.0", "b"]
    assert [call.shape for call in calls] == [(2, 3)] * 3
    assert torch.equal(calls[1].weight, model["a"][0].weight)
