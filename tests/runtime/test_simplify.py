"""Constants folded and identities removed; graphs run by PyTorch, against the modules they come from."""

import pytest
import torch
import torch.nn.functional as F
from regions import Function, calls, graph_of
from torch import nn

from pruneaug.runtime.graph import constant
from pruneaug.runtime.simplify import fold_constants, remove_void_masks, simplify


def simplified(function, *inputs):
    """The graph of a function, the layers of the graph it came from included, and its operators' names."""
    graph = graph_of(Function(function), *inputs)
    want = graph(*inputs)
    simplify(graph)
    torch.testing.assert_close(graph(*inputs), want)
    return graph, [str(node.target).removeprefix("aten.").partition(".")[0] for node in calls(graph)]


X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
CONSTANT = torch.arange(4.0)
IDENTITIES = {
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "contiguous": lambda x: x.contiguous(),
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach(),
    "cast to its dtype": lambda x: x.to(torch.float32).float().type_as(x),
    "cast to its device": lambda x: x.to("cpu"),
    "view of its shape": lambda x: x.view(2, 3, 4).reshape(2, -1, 4).expand(2, 3, 4),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_what_changes_nothing_is_removed(name):
    assert simplified(lambda x: IDENTITIES[name](x) + 1, X)[1] == ["add"]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x.double() + 1, ["to", "add"]),
        (lambda x: x.view(6, 4) + 1, ["reshape", "add"]),
        (lambda x: x[:, :1].expand(2, 3, 4) + 1, ["slice", "slice", "expand", "add"]),
        (lambda x: x.transpose(0, 1).contiguous().view(3, 8), ["transpose", "reshape"]),
    ],
)
def test_what_changes_shape_or_dtype_stays(function, names):
    found = simplified(function, X)[1]
    assert [name for name in found if name != "slice"] == [name for name in names if name != "slice"]


CONSTANTS = {
    "arithmetic": lambda x: x + (CONSTANT * 2 + 1).exp(),
    "made in forward": lambda x: x + torch.arange(4) * torch.ones(3, 1),
    "views": lambda x: x + CONSTANT.view(2, 2).t().flatten(),
    "several readers": lambda x: (x + (y := CONSTANT * 2)) * y,
    "shapes": lambda x: x + x.size(1) * torch.full((4,), x.shape[-1]),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_what_depends_on_no_input_is_computed_once(name):
    _, names = simplified(CONSTANTS[name], X)
    assert set(names) <= {"add", "mul"}
    assert len(names) <= 2


def test_a_constant_result_is_a_constant_and_its_parents_are_gone():
    graph, names = simplified(lambda x: (x + 1, (CONSTANT * 2).sum()), X)
    assert names == ["add"]
    assert [node.op for node in graph.graph.nodes].count("get_attr") == 1


def test_tuples_random_numbers_and_what_fails_are_not_folded():
    graph = graph_of(Function(lambda x: x + CONSTANT.topk(1)[0] + torch.rand(4)), X)
    simplify(graph)
    names = [str(node.target) for node in calls(graph)]
    assert "aten.topk.default" in names
    assert "aten.rand.default" in names


def test_a_random_operator_that_nobody_reads_is_removed():
    graph = graph_of(Function(lambda x: (torch.rand(4), x + 1)[1]), X)
    fold_constants(graph)
    assert [str(node.target) for node in calls(graph)] == ["aten.add.Tensor"]


def test_a_dropout_that_drops_in_eval_mode_stays():
    graph = graph_of(Function(lambda x: F.dropout(x, 0.5)), X)
    simplify(graph)
    assert [str(node.target) for node in calls(graph)] == ["aten.dropout.default"]


def test_the_weights_of_layers_are_not_copied():
    layer = nn.Linear(4, 5)
    graph = graph_of(Function(lambda x, layer: layer(x) + layer.weight[:, 0].double().sum().float(), layer), X)
    simplify(graph)
    (linear,) = (node for node in calls(graph) if node.target is torch.ops.aten.linear.default)
    assert constant(graph, linear.args[1]).data_ptr() == layer.weight.data_ptr()


CAUSAL = torch.tril(torch.ones(3, 3, dtype=torch.bool))
MASKS = {  # a mask, and whether it removes something
    "all take part": (torch.ones(3, 3, dtype=torch.bool), False),
    "nothing is added": (torch.zeros(3, 3), False),
    "one does not": (CAUSAL, True),
    "something is added": (torch.full((3, 3), 0.5), True),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("by_name", [False, True])
def test_attention_has_no_mask_that_removes_nothing(name, by_name):
    mask, removes = MASKS[name]

    def attention(x):
        held = mask.clone()  # a constant
        if by_name:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=held, scale=0.3)
        return F.scaled_dot_product_attention(x, x, x, held, 0.0, False)

    graph, _ = simplified(attention, X)
    want = graph(X)
    remove_void_masks(graph)
    graph.recompile()
    torch.testing.assert_close(graph(X), want)
    (node,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default)
    assert (len(node.all_input_nodes) == 2) == removes
