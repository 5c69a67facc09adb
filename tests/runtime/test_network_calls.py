"""What a compiled network takes and returns: structures, memory layouts, NumPy, saved networks, memory of results."""

import subprocess
import sys
from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from float64_networks import SMALL, Model, assert_tree_close, check, compile_model, conv, image, in_float64, seeded
from torch import nn
from torch.utils import _pytree as pytree

from pruneaug.errors import InputError
from pruneaug.runtime.network import load_network

X, TOKENS, IDS = image(2, 3, 7, 7), image(2, 5, 6), torch.tensor([[1, 2], [0, 9]])
Pair = namedtuple("Pair", "first second")


def linear(forward):
    return Model(forward, l=nn.Linear(6, 4), e=nn.Embedding(11, 6))


OUTPUTS = {
    "nested": lambda m, x: {"a": (y := m["l"](x)), "b": [None, (y, y.relu(), {"z": 1.5})], "c": Pair(x, 3)},
    "none between": lambda m, x: (None, m["l"](x), None, "text", True),
    "an ordered mapping": lambda m, x: OrderedDict(b=m["l"](x), a=x),
    "constants": lambda m, x: (m["l"](x), torch.arange(5), m["l"].bias),
    "the input": lambda m, x: (m["l"](x), x, x.view(2, -1), x.clone()),
    "one twice": lambda m, x: (y := m["l"](x), y, y.view(2, -1), y.transpose(1, 2)),
    "other dtypes": lambda m, x: (m["l"](x).argmax(1), m["l"](x) > 0, m["l"](x).int(), x.shape[0]),
    "no dimension": lambda m, x: m["l"](x).mean(),
    "one value": lambda m, x: m["l"](x)[:1, :1, :1],
    "only constants beside": lambda m, x: [m["l"](torch.ones(3, 6).to(x.dtype)), x],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_have_the_structure_that_the_network_gives_them(name):
    check(linear(OUTPUTS[name]), (TOKENS,))


INPUTS = {
    "two": (lambda m, x, y: m["l"](x) * m["l"](x * y), (TOKENS, image(2, 5, 1))),
    "one twice": (lambda m, x, y: m["l"](x) - y[..., :4], (TOKENS, TOKENS)),
    "unused": (lambda m, x, y: m["l"](x), (TOKENS, TOKENS)),
    "none": (lambda m, x, y: m["l"](x) if y is None else x, (TOKENS, None)),
    "numbers": (lambda m, x, scale, yes: m["l"](x) * scale if yes else x, (TOKENS, 2.5, True)),
    "nested": (lambda m, given: m["l"](given["a"]) + given["b"][0], ({"a": TOKENS, "b": (image(5, 4),)},)),
    "no dimension": (lambda m, x, y: m["l"](x) * y, (TOKENS, torch.tensor(2.0))),
    "integers": (lambda m, i, j: m["l"](m["e"](i) + m["e"](j)), (IDS, IDS[0].int())),
    "bools": (lambda m, x, keep: m["l"](x) * keep[..., None], (TOKENS, torch.arange(10).view(2, 5) % 2 == 0)),
    "bytes": (lambda m, x: m["l"](x.to(m["l"].weight.dtype) / 255), (torch.arange(60).view(2, 5, 6).byte(),)),
    "no examples": (lambda m, x: m["l"](x), (image(0, 6),)),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_may_be_all_that_the_network_takes(name):
    forward, inputs = INPUTS[name]
    check(linear(forward), inputs)


def test_equal_mappings_are_equal_inputs_whatever_the_order_of_their_keys():
    model = seeded(linear(lambda m, given: m["l"](given["x"]) - 2 * m["l"](given["parts"][0]["y"])))
    x, y = TOKENS, image(2, 5, 6) * 3
    compiled = compile_model(model, ({"x": x, "parts": [{"y": y, "n": 3}]},))
    want = in_float64(model, {}, ({"parts": [{"n": 3, "y": y}], "x": x},))
    assert_tree_close(compiled({"parts": [{"n": 3, "y": y}], "x": x}), want)
    with pytest.raises(InputError, match=r"float32 \[2, 5, 6\] of \['z'\]"):
        compiled({"parts": [{"n": 3, "y": y}], "z": x})


@pytest.fixture(scope="module")
def network():
    """A compiled network, and what it computes from `X`."""
    model = seeded(nn.Sequential(conv(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 5)))
    compiled = compile_model(model, (X,))
    want = compiled(X)
    assert_tree_close(want, in_float64(model, {}, (X,)))
    return compiled, want


LAYOUTS = {
    "other strides": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "every second": lambda x: torch.stack([x, x], -1)[..., 0],
    "needing a gradient": lambda x: nn.Parameter(x.clone()),
    "one value off": lambda x: torch.cat([torch.zeros(1), x.flatten()])[1:].view(x.shape),
    "negated by a bit": lambda x: torch._neg_view(-x),
    "three values off": lambda x: torch.cat([torch.zeros(3), x.flatten()])[3:].view(x.shape),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_inputs_may_lie_anyhow_in_memory(network, name):
    compiled, want = network
    assert torch.equal(compiled(LAYOUTS[name](X)), want)


@pytest.mark.parametrize("change", [lambda x: x.to("meta"), lambda x: x.to_sparse()])
def test_an_input_that_is_not_in_memory_is_an_error(network, change):
    with pytest.raises(InputError, match="takes dense tensors on the CPU, but got a torch"):
        network[0](change(X))


def test_an_expanded_input_is_what_it_looks_like(network):
    x = X[:, :, :1].expand(X.shape)
    assert torch.equal(network[0](x), network[0](x.contiguous()))


ARRAYS = {
    "plain": lambda x: x,
    "column order": np.asfortranarray,
    "negative strides": lambda x: np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1],
    "one value off": lambda x: np.concatenate([np.zeros(1, np.float32), x.ravel()])[1:].reshape(x.shape),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_in_give_arrays_out(network, name):
    compiled, want = network
    array = ARRAYS[name](X.numpy().copy())
    array.flags.writeable = False
    result = compiled(array)
    assert isinstance(result, np.ndarray)
    assert np.array_equal(result, want.numpy())


def test_inference_mode_changes_nothing(network):
    with torch.inference_mode():
        assert torch.equal(network[0](X), network[1])


RESULTS = {
    "kernel": lambda m, x: m["c"](x),
    "view": lambda m, x: m["c"](x).flatten(1),
    "tuple of views": lambda m, x: (y := m["c"](x), y.flatten(1), y.clone()),
    "operators without kernels": lambda m, x: (y := F.leaky_relu(m["c"](x)), y.flatten(1), y.cumsum(1)),
    "several kernels": lambda m, x: (m["c"](x), F.relu(m["c"](x)), F.max_pool2d(m["c"](x), 2), m["c"](x).mean((2, 3))),
    "constants": lambda m, x: (m["c"](x) + m["c"].bias[:, None, None], m["c"].bias, torch.arange(4.0).chunk(2)),
    "constants of the input's shape": lambda m, x: (m["c"](x), torch.zeros_like(x), x.new_ones(3).split([1, 2])),
    "copies": lambda m, x: (y := m["c"](x), y.clone(), x.clone(), F.pad(x, (0, 0)), x.repeat(1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_the_callers_own(name):
    compiled = compile_model(seeded(Model(RESULTS[name], c=conv(3, 4))), (X,))
    x = X.clone()
    first = pytree.tree_leaves(compiled(x))
    kept = [result.clone() for result in first]
    compiled(3 * X + 1)
    assert all(torch.equal(result, want) for result, want in zip(first, kept))
    for result in first:
        result.add_(1)
    assert torch.equal(x, X)
    assert all(torch.equal(result, want + 1) for result, want in zip(first, kept))
    assert all(torch.equal(result, want) for result, want in zip(pytree.tree_leaves(compiled(X)), kept))


def make_network():
    def forward(m, x):
        y = F.relu(m["a"](x) + m["b"](x))
        return {"logits": m["l"](y.mean((2, 3))), "parts": (y, None, y.cumsum(1))}

    return seeded(Model(forward, a=conv(3, 8), b=conv(3, 8, 1), l=nn.Linear(8, 5)))


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads_computes_the_same(threads):
    model = make_network()
    compiled = compile_model(model, (X,), target=replace(SMALL, threads=threads))
    assert compiled.threads == threads
    assert_tree_close(compiled(X), in_float64(model, {}, (X,)))


RUN_SAVED = """
import sys, torch, pruneaug
x, want = torch.load(sys.argv[2])
got = pruneaug.load(sys.argv[1])(x)
assert list(got) == ["logits", "parts"] and got["parts"][1] is None
assert torch.equal(got["logits"], want[0]) and torch.equal(got["parts"][0], want[1])
"""


def test_a_saved_network_computes_the_same_here_and_in_another_process(tmp_path):
    compiled = compile_model(make_network(), (X,))
    compiled.save(tmp_path / "network.so")
    want = compiled(X)
    loaded = load_network(tmp_path / "network.so")
    assert loaded.inputs == compiled.inputs
    assert loaded.threads == compiled.threads
    assert loaded.report == compiled.report
    got = loaded(X)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(pytree.tree_leaves(got), pytree.tree_leaves(want))
        if ours is not None
    )
    torch.save((X, (want["logits"], want["parts"][0])), tmp_path / "values.pt")
    subprocess.run([sys.executable, "-c", RUN_SAVED, tmp_path / "network.so", tmp_path / "values.pt"], check=True)


def test_networks_of_different_threads_may_be_called_from_several_threads_at_once():
    model = make_network()
    networks = [compile_model(model, (X,), target=replace(SMALL, threads=threads)) for threads in (1, 2)]
    inputs = [X * scale for scale in range(6)]
    want = [networks[0](x)["logits"] for x in inputs]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda index: networks[index % 2](inputs[index % 6])["logits"], range(36)))
    assert all(torch.equal(result, want[index % 6]) for index, result in enumerate(results) if index % 2 == 0)
    for index, result in enumerate(results):
        torch.testing.assert_close(result, want[index % 6])
