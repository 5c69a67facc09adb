"""Exported graphs: the layers in them, their names and weights, and what is removed from them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruneaug.errors import CompileError
from pruneaug.runtime.graph import (
    called_layers,
    constant,
    export_program,
    first_names,
    layer_calls,
    mask_weights,
    program_graph,
    remove_dead,
)
from pruneaug.runtime.unbatched import add_batches

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Layers `a`, `b` (also `named`), and a function of them and the input."""

    def __init__(self, forward, a=None, b=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = a or nn.Linear(4, 4), b or nn.Linear(4, 4)
        self.named = nn.ModuleList([self.b])
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def program_of(forward, x=X, **layers):
    return export_program(Network(forward, **layers), (x,))


def test_layers_are_called_by_the_first_of_their_names():
    program = program_of(lambda m, x: m.named[0](m.a(m.b(x))))
    assert [call.name for call in layer_calls(program_graph(program))] == ["b", "a", "b"]
    names = first_names(program)
    assert names["named.0.weight"] == names["b.weight"] == "b.weight"
    assert names["a.bias"] == "a.bias"


def test_weights_of_two_layers_are_one_only_if_they_share_their_memory():
    shared = nn.Linear(4, 4)
    other = nn.Linear(4, 4)
    other.weight = shared.weight
    names = first_names(program_of(lambda m, x: m.a(m.b(x)), a=shared, b=other))
    assert names["b.weight"] == "a.weight"
    assert names["b.bias"] == "b.bias"


@pytest.mark.parametrize(
    ("forward", "called"),
    [
        (lambda m, x: m.a(x), {"a"}),
        (lambda m, x: (m.a(x), m.b(x))[1], {"a", "b"}),
        (lambda m, x: x @ m.a.weight + m.b(x), {"b"}),
        (lambda m, x: F.linear(x, m.a.weight, m.b.bias), {"a"}),
        (lambda m, x: F.linear(x, m.a.weight * 2), set()),
        (lambda m, x: x @ x.t(), set()),
    ],
)
def test_the_layers_that_a_program_calls_are_those_whose_weight_a_product_reads(forward, called):
    assert called_layers(program_of(forward)) == called


@pytest.mark.parametrize(
    ("forward", "bias"),
    [
        (lambda m, x: m.a(x), True),
        (lambda m, x: F.linear(x, m.a.weight), False),
        (lambda m, x: F.linear(x, m.a.weight, bias=m.b.bias), True),
    ],
)
def test_a_call_has_its_weight_and_bias(forward, bias):
    (call,) = layer_calls(program_graph(program_of(forward)))
    assert (call.name, call.shape, call.weight.shape) == ("a", (2, 4), (4, 4))
    assert (call.bias is not None) == bias


@pytest.mark.parametrize(
    "forward", [lambda m, x: F.linear(x, x), lambda m, x: F.linear(x, m.a.weight, x[0]), lambda m, x: F.relu(x)]
)
def test_products_of_activations_and_other_operators_are_no_layers(forward):
    assert list(layer_calls(program_graph(program_of(forward)))) == []


def test_removed_weights_are_zero_for_all_readers_and_the_network_keeps_its_own():
    program = program_of(lambda m, x: (m.a(x) @ m.a.weight, m.b(x)))
    graph = program_graph(program)
    keep = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    before = program.state_dict["a.weight"].clone()
    mask_weights(graph, {"a": keep})
    weight = before.masked_fill(~keep, 0.0)
    first, second = graph(X)
    torch.testing.assert_close(first, F.linear(X, weight, program.state_dict["a.bias"]) @ weight)
    torch.testing.assert_close(second, F.linear(X, program.state_dict["b.weight"], program.state_dict["b.bias"]))
    assert torch.equal(program.state_dict["a.weight"], before)
    assert [call.name for call in layer_calls(graph)] == ["a", "b"]


def test_what_no_output_needs_is_removed_whatever_it_does():
    def forward(m, x):
        torch.rand(3)
        F.scaled_dot_product_attention(x, x, x)
        m.b(x)
        return m.a(x.to(torch.float32))

    graph = program_graph(program_of(forward))
    remove_dead(graph)
    assert {str(node.target) for node in graph.graph.nodes if node.op == "call_function"} <= {
        "aten.to.dtype",
        "aten.linear.default",
    }
    assert len(list(layer_calls(graph))) == 1
    assert graph(X).shape == (2, 4)


def test_constants_are_parameters_buffers_and_nothing_else():
    graph = program_graph(program_of(lambda m, x: m.a(x)))
    remove_dead(graph)
    values = [constant(graph, node) for node in graph.graph.nodes if node.op == "get_attr"]
    assert not any(value.requires_grad for value in values)
    assert sorted(tuple(value.shape) for value in values) == [(4,), (4, 4)]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3),
        nn.Conv2d(3, 5, 2, padding="same"),
        nn.MaxPool2d(2),
        nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d(2),
    ],
)
def test_images_without_a_batch_get_one(layer):
    x = torch.randn(3, 7, 6)
    model = nn.Sequential(layer, nn.ReLU()).eval()
    graph = program_graph(export_program(model, (x,)))
    add_batches(graph)
    torch.testing.assert_close(graph(x), model(x))
    shapes = [tuple(node.meta["val"].shape) for node in graph.graph.nodes if node.op == "call_function"]
    assert [len(shape) for shape in shapes] == [4, 4, 3, 3]


def test_a_network_that_is_exported_keeps_its_mode_and_that_of_its_layers():
    model = Network(lambda m, x: m.a(x)).train()
    model.b.eval()
    export_program(model, (X,))
    assert (model.training, model.a.training, model.b.training) == (True, True, False)


@pytest.mark.parametrize("forward", [lambda m, x: m.missing(x), lambda m, x: x if x.any() else -x])
def test_a_network_that_cannot_be_exported_is_an_error_that_names_it(forward):
    with pytest.raises(CompileError, match=r"must be exportable by torch\.export, but Network is not: "):
        program_of(forward)
