"""What a network takes beside its layers, on disk."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruneaug.errors import LatencyTableError, StorageError
from pruneaug.latency.rest import Rest, alike, network_digest, read_rest, write_rest
from pruneaug.network.layers import Layer, Network, find_layers
from pruneaug.network.ops import LinearOp
from pruneaug.runtime.graph import export_program
from pruneaug.sparsity.patterns import Block, LayerChoice

REST = Rest("0123456789abcdef", 1000.5, 900.0, "block:8x1", 0.9, measured_at="2026-01-01T00:00:00+00:00")


def digest(model, *shape):
    inputs = (torch.zeros(shape),)
    return network_digest(export_program(model, inputs), find_layers(model, inputs))


def test_a_rest_is_read_back_as_it_was_written_and_replaced_by_the_next(tmp_path):
    assert read_rest(tmp_path, REST.network) is None
    write_rest(tmp_path / "new", REST)
    assert read_rest(tmp_path / "new", REST.network) == REST
    later = replace(REST, latency_us=2000.0)
    write_rest(tmp_path / "new", later)
    assert read_rest(tmp_path / "new", REST.network) == later
    assert read_rest(tmp_path / "new", "another") is None


@pytest.mark.parametrize(("layers_us", "rest_us"), [(400.5, 600.0), (1000.5, 0.0), (1200.0, 0.0)])
def test_the_rest_is_what_the_layers_leave_and_never_below_zero(layers_us, rest_us):
    assert replace(REST, layers_us=layers_us).rest_us == rest_us


def test_a_pattern_is_for_the_layers_that_hold_a_block():
    network = Network((Layer("small", LinearOp(3, 4, 4)), Layer("large", LinearOp(3, 32, 32), calls=2)))
    assert alike(network, "block:8x1", 0.9) == {"large": LayerChoice(Block(8, 1), 0.9)}
    assert alike(network, "dense", 0.0) == {}


def test_the_rest_that_an_earlier_version_wrote_is_measured_again(tmp_path):
    write_rest(tmp_path, REST)
    (path,) = tmp_path.rglob("*.json")
    path.write_text(json.dumps({"network": REST.network, "dense_us": 7.5, "measured_at": "then"}))
    assert read_rest(tmp_path, REST.network) is None


WHOLE = {
    "network": REST.network,
    "latency_us": 2.0,
    "layers_us": 1.0,
    "pattern": "dense",
    "sparsity": 0.0,
    "measured_at": "",
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        "{}",
        json.dumps({**WHOLE, "extra": 1}),
        json.dumps({**WHOLE, "latency_us": "2"}),
        json.dumps({**WHOLE, "latency_us": None}),
        json.dumps({**WHOLE, "latency_us": -1.0}),
        json.dumps({**WHOLE, "layers_us": -1.0}),
        json.dumps({**WHOLE, "latency_us": float("nan")}),
        json.dumps({**WHOLE, "latency_us": float("inf")}),
        json.dumps({**WHOLE, "network": "another"}),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, text):
    write_rest(tmp_path, REST)
    (path,) = tmp_path.rglob("*.json")
    path.write_text(text)
    with pytest.raises(LatencyTableError, match=f"{path.name} must hold the rest .*delete it and profile again"):
        read_rest(tmp_path, REST.network)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "rest").write_text("a file")
    with pytest.raises(StorageError, match="rest"):
        write_rest(tmp_path, REST)


def test_networks_of_the_same_modules_and_sizes_have_one_digest_whatever_their_weights():
    assert digest(nn.Sequential(nn.Linear(3, 4)), 2, 3) == digest(nn.Sequential(nn.Linear(3, 4)), 2, 3)
    assert len(digest(nn.Sequential(nn.Linear(3, 4)), 2, 3)) == 16


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(3, 4)), (1, 3)),
        (nn.Sequential(nn.Linear(3, 5)), (2, 3)),
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (2, 3)),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)), (2, 3)),
    ],
)
def test_other_modules_or_sizes_have_another_digest(model, shape):
    assert digest(model, *shape) != digest(nn.Sequential(nn.Linear(3, 4)), 2, 3)


class Activation(nn.Module):
    """Shows its function, and so where that lies in memory."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)

    def extra_repr(self):
        return repr(self.function)


def test_where_a_function_lies_in_memory_does_not_count_but_what_it_computes_does():
    def make(function):
        def activation(x):
            return function(x)

        return nn.Sequential(nn.Linear(3, 4), Activation(activation))

    one, another = make(F.relu), make(F.relu)
    assert str(one) != str(another)
    assert digest(one, 2, 3) == digest(another, 2, 3)
    assert digest(one, 2, 3) != digest(make(F.gelu), 2, 3)
