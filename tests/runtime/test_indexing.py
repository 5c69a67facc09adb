"""Operators that read or write where numbers say: never outside, and with an error where the numbers are inputs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from float64_networks import Model, assert_tree_close, compile_model, image, in_float64, seeded
from regions import Function, calls, compute, graph_of, region_module
from torch import nn

from pruneaug.errors import InputError
from pruneaug.runtime.bounds import index_bounds
from pruneaug.runtime.fallback import extract_region
from pruneaug.runtime.importer import Importer
from pruneaug.runtime.network import load_network

CUBE = image(5, 5, 5)
FAR = torch.tensor([10**9, -(10**9), 2, 5, -6, -1])


def along_rows(i):
    return i.view(1, 1, -1).expand(5, 5, -1)


READS = {
    "gather": lambda x, i: x.gather(2, along_rows(i)),
    "index select": lambda x, i: (x.index_select(-1, i), x.index_select(1, i.int())),
    "embedding": lambda x, i: F.embedding(i, x[0]),
}
WRITES = {
    "scatter": lambda x, i: x.scatter(2, along_rows(i)[:, :, 1:4], x[..., 2:]),
    "scatter of a value": lambda x, i: x.scatter(2, along_rows(i), 7.0),
    "scatter of integers": lambda x, i: (x * 9).long().scatter(-1, along_rows(i), 3),
    "scattered sums": lambda x, i: x.scatter_add(2, along_rows(i), torch.ones(5, 5, 6)),
}
FROM_THE_END = {
    "index": lambda x, i: (x[:, :, i], x[i, :, i], x[:, i, i], x[i]),
    "index add": lambda x, i: x.index_add(2, i, torch.ones(5, 5, 6)),
    "index put": lambda x, i: (x.index_put((i, i, i), torch.tensor(1.0)), x.index_put((i,), x[0, 0])),
}


@pytest.mark.parametrize("functions", [READS, WRITES], ids=["reads", "writes"])
def test_an_index_outside_counts_as_the_first_or_last_one(functions):
    model = Function(lambda x, i: [function(x, i) for function in functions.values()])
    want = torch.utils._pytree.tree_leaves(model(CUBE, FAR.clamp(0, 4)))
    torch.testing.assert_close(compute(model, CUBE, FAR), want)


def test_a_negative_index_of_other_operators_counts_from_the_end_first():
    model = Function(lambda x, i: [function(x, i) for function in FROM_THE_END.values()])
    inside = torch.where(FAR < 0, FAR + 5, FAR).clamp(0, 4)
    want = torch.utils._pytree.tree_leaves(model(CUBE, inside))
    torch.testing.assert_close(compute(model, CUBE, FAR), want)


def test_an_index_into_a_whole_tensor_stays_inside():
    model = Function(lambda x, i: x[0, 0].take(i))
    inside = torch.where(FAR < 0, FAR + 5, FAR).clamp(0, 4)
    (result,) = compute(model, CUBE, FAR)
    assert torch.equal(result, model(CUBE, inside))


def test_the_embedding_kernel_stays_inside():
    model = seeded(Model(lambda m, i: m["e"](i * 1000), e=nn.Embedding(7, 16)))
    compiled = compile_model(model, (torch.zeros(2, 3).long(),))
    assert [step.kernel for step in compiled.report.steps if step.origin == "embedding"] == ["embedding"]
    rows = torch.tensor([[6, 0, 0], [0, 6, 6]])
    got = compiled(torch.tensor([[1, -1, 0], [-5, 3, 10**9]]))
    assert_tree_close(got, in_float64(model.layers["e"], {}, (rows,)))


def test_a_class_outside_gives_no_one_hot_and_nothing_calls_python():
    model = Function(lambda i: F.one_hot(i, 5))
    graph = graph_of(model, FAR.clamp(0, 4))
    assert "assert" not in region_module(extract_region(graph, calls(graph))).script()
    (result,) = compute(model, FAR)
    assert torch.equal(result[2], torch.tensor([0, 0, 1, 0, 0]))
    assert result.sum() == 1


def test_what_may_read_foreign_memory_has_no_converter():
    assert "roi_align.default" not in Importer().create_convert_map()


BOUNDS = {
    "embedding": (lambda m, i: m["e"](i), (0, 6)),
    "through views": (lambda m, i: m["e"](i.unsqueeze(0).expand(4, -1, -1).flatten(1)), (0, 6)),
    "as int64": (lambda m, i: m["e"](i.int().long()), None),
    "gather": (lambda m, i: m["e"].weight.gather(-1, i), (0, 3)),
    "index": (lambda m, i: m["e"].weight[:, i], (-4, 3)),
    "one hot": (lambda m, i: F.one_hot(i, 9), (0, 8)),
    "two readers": (lambda m, i: (m["e"](i), m["e"].weight[:, i]), (0, 3)),
    "a part": (lambda m, i: m["e"](i[:, 1:]), None),
    "sums": (lambda m, i: m["e"](i + 1), None),
    "no index": (lambda m, i: i * 2, None),
    "a mask": (lambda m, i: m["e"].weight[:2, :2].index_put((i > 0,), torch.tensor(0.0)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDS)
def test_inputs_that_are_indices_have_bounds(name):
    forward, bounds = BOUNDS[name]
    graph = graph_of(Model(forward, e=nn.Embedding(7, 4)), torch.zeros(2, 2).long())
    assert index_bounds(graph) == [bounds]


def test_an_input_that_names_what_is_not_there_is_an_error(tmp_path):
    model = seeded(
        Model(lambda m, x, i, j: m["l"](x + m["e"](i)) + m["e"].weight[j], e=nn.Embedding(7, 4), l=nn.Linear(4, 4))
    )
    inputs = image(2, 3, 4), torch.tensor([[0, 6, 2], [1, 1, 1]]), torch.tensor([-7, 6, 0])
    compiled = compile_model(model, inputs)
    compiled.save(tmp_path / "network.so")
    x, i, j = inputs
    for network in (compiled, load_network(tmp_path / "network.so")):
        assert_tree_close(network(*inputs), in_float64(model, {}, inputs))
        with pytest.raises(InputError, match=r"tensor 1 .*int64 \[2, 3\].* from 0 to 6, but got 7; "):
            network(x, i + 1, j)
        with pytest.raises(InputError, match="from 0 to 6, but got -1"):
            network.profile(x, i - 1, j)
        with pytest.raises(InputError, match=r"tensor 2 .* from -7 to 6, but got -8"):
            network(x.numpy(), i.numpy(), (j - 1).numpy())
        assert isinstance(network(x.numpy(), i.numpy(), j.numpy()), np.ndarray)


def test_no_indices_at_all_are_inside():
    model = Model(lambda m, i: m["e"](i), e=nn.Embedding(7, 4))
    assert compile_model(model, (torch.zeros(0, 3).long(),))(torch.zeros(0, 3).long()).shape == (0, 3, 4)
