"""In-place operators of exported graphs, made functional; graphs run by PyTorch, against the modules they come from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruneaug.errors import CompileError
from pruneaug.runtime.functional import functional_graph
from pruneaug.runtime.graph import export_program

_aten = torch.ops.aten


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self._function = nn.Linear(4, 4), function
        self.register_buffer("state", torch.zeros(1))

    def forward(self, x):
        return self._function(self, x)


def exported(function):
    torch.manual_seed(0)
    module = Function(function).eval()
    x = torch.randn(3, 4)
    return module, functional_graph(export_program(module, (x,))), x


def targets(graph):
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def write(method, *args):
    def function(m, x):
        y = m.layer(x)
        getattr(y, method)(*args)
        return y, m.layer(y)

    return function


WRITES = [
    ("relu_",), ("add_", 2.0), ("sub_", 1), ("mul_", 0.5), ("neg_",), ("pow_", 2), ("clamp_", -0.1, 0.1), ("zero_",),
    ("fill_", 3), ("masked_fill_", torch.eye(3, 4) > 0, 2.0), ("copy_", torch.ones(3, 4)), ("squeeze_",),
    ("index_fill_", 1, torch.tensor([0, 2]), 5.0), ("index_add_", 0, torch.tensor([0, 0]), torch.ones(2, 4)),
    ("mul_", torch.eye(3, 4) > 0), ("add_", torch.ones(4, dtype=torch.int64)),
]  # fmt: skip


@pytest.mark.parametrize("arguments", WRITES, ids=lambda arguments: arguments[0])
def test_an_in_place_operator_becomes_its_functional_one_and_the_layers_stay(arguments):
    module, graph, x = exported(write(*arguments))
    assert targets(graph).count(_aten.linear.default) == 2
    assert not any(target._schema.is_mutable for target in targets(graph))
    for got, want in zip(graph(x), module(x)):
        torch.testing.assert_close(got, want)


def views(m, x):
    y = m.layer(x)
    part, flat = y[:, 1:], y.flatten()
    part.relu_()
    y.add_(1)
    flat[2] = 7.0
    first, second = y.split(2, 1)
    first.copy_(second)
    return y, part, flat


def dropped(m, x):
    y = m.layer(x)
    F.dropout(y, 0.3, training=False).add_(1)
    return y


def cast(m, x):
    y = m.layer(x)
    y.type_as(x).add_(1)
    y.to(torch.float32).mul_(2)
    return y


def wide(m, x):
    y = m.layer(x).round().float()
    y.add_(torch.full((4,), 0.1, dtype=torch.float64))
    return y, y.int().add_(torch.ones(4, dtype=torch.int64))


@pytest.mark.parametrize("function", [views, dropped, cast, wide])
def test_writes_reach_all_that_shares_the_memory(function):
    module, graph, x = exported(function)
    with torch.no_grad():
        got, want = graph(x), module(x)
    for ours, theirs in zip(got if isinstance(got, tuple) else (got,), want if isinstance(want, tuple) else (want,)):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("function", [lambda m, x: m.layer(x.mul_(2)), lambda m, x: (x[:, 0].fill_(2), m.layer(x))[1]])
def test_an_input_that_is_written_to_stays_as_it_is(function):
    module, graph, x = exported(function)
    want = module(x.clone())
    before = x.clone()
    torch.testing.assert_close(graph(x), want)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.layer(x) + m.state.add_(1),
        lambda m, x: (m.state[:1].add_(1), m.layer(x) + m.state)[1],
        lambda m, x: (m.state.copy_(x[0, :1]), m.layer(x))[1],
    ],
)
def test_a_buffer_that_is_written_to_is_an_error(function):
    with pytest.raises(CompileError, match="changes its own 'state'; return the new value"):
        exported(function)


def test_the_weights_are_those_of_the_program():
    module, graph, _ = exported(lambda m, x: m.layer(x).relu_())
    assert graph.get_parameter("layer.weight").data_ptr() == module.layer.weight.data_ptr()
