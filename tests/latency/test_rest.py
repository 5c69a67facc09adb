"""What a network takes beside its layers, on disk."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruneaug.errors import LatencyTableError, StorageError
from pruneaug.latency.rest import (
    Rest,
    Sample,
    alike,
    network_digest,
    read_rest,
    sampled_sparsities,
    write_rest,
)
from pruneaug.network.layers import Layer, Network, find_layers
from pruneaug.network.ops import LinearOp
from pruneaug.runtime.graph import export_program
from pruneaug.sparsity.patterns import Block, LayerChoice

SPARSE = Sample("block:8x1", 0.9, latency_us=1000.5, layers_us=900.0)
REST = Rest("0123456789abcdef", (SPARSE,), measured_at="2026-01-01T00:00:00+00:00")


def digest(model, *shape):
    inputs = (torch.zeros(shape),)
    return network_digest(export_program(model, inputs), find_layers(model, inputs))


def test_a_rest_is_read_back_as_it_was_written_and_replaced_by_the_next(tmp_path):
    assert read_rest(tmp_path, REST.network) is None
    write_rest(tmp_path / "new", REST)
    assert read_rest(tmp_path / "new", REST.network) == REST
    later = replace(REST, samples=(SPARSE, replace(SPARSE, latency_us=2000.0)))
    write_rest(tmp_path / "new", later)
    assert read_rest(tmp_path / "new", REST.network) == later
    assert read_rest(tmp_path / "new", "another") is None


@pytest.mark.parametrize(("layers_us", "rest_us"), [(400.5, 600.0), (1000.5, 0.0), (1200.0, 0.0)])
def test_the_rest_is_what_the_layers_leave_and_never_below_zero(layers_us, rest_us):
    rest = replace(REST, samples=(replace(SPARSE, layers_us=layers_us),))
    assert (rest.layer_factor(0.9), rest.rest_us) == (1.0, rest_us)


SPARSITIES = 0.95, 0.7, 0.5


def samples_of(latencies, layers):
    given = zip(SPARSITIES, latencies, layers)  # as many as there are
    return replace(REST, samples=tuple(Sample("block:8x1", *values) for values in given))


@pytest.mark.parametrize(("factor", "left_us"), [(0.86, 1200.0), (1.0, 70.0), (1.3, 0.0), (1.02, 1e5)])
def test_two_samples_tell_what_a_layer_takes_in_the_network(factor, left_us):
    layers = [900.0, 5400.0]
    rest = samples_of([factor * us + left_us for us in layers], layers)
    assert [rest.layer_factor(sparsity) for sparsity in (0.0, 0.7, 0.8, 0.99, 1.0)] == pytest.approx([factor] * 5)
    assert rest.rest_us == pytest.approx(left_us, abs=1e-3)


def test_a_layer_takes_what_it_takes_in_networks_as_sparse():
    rest = samples_of([1300.0, 7600.0, 10100.0], [1000.0, 6000.0, 10000.0])
    factors = [
        (latency - rest.rest_us) / us for latency, us in [(1300.0, 1000.0), (7600.0, 6000.0), (10100.0, 10000.0)]
    ]
    assert [rest.layer_factor(sparsity) for sparsity in SPARSITIES] == pytest.approx(factors)
    # 0.85 keeps three times as much as 0.95, and half of what 0.7 does.
    between = (factors[0] * math.log(2) + factors[1] * math.log(3)) / math.log(6)
    assert rest.layer_factor(0.85) == pytest.approx(between)
    assert [rest.layer_factor(sparsity) for sparsity in (1.0, 0.99, 0.2, 0.0)] == pytest.approx(
        [*factors[:1] * 2, *factors[2:] * 2]
    )
    shuffled = replace(rest, samples=(rest.samples[1], rest.samples[2], rest.samples[0]))
    assert shuffled.layer_factor(0.85) == pytest.approx(between)


def test_networks_without_a_layer_in_use_have_a_factor_too():
    rest = samples_of([500.0, 900.0], [0.0, 400.0])
    assert rest.rest_us == pytest.approx(500.0, abs=1e-3)
    assert 0.5 <= rest.layer_factor(0.95) <= 2
    assert rest.layer_factor(0.7) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("latencies", "layers"),
    [
        ([100.0, 900.0], [300.0, 1000.0]),  # exact with a rest below zero
        ([1000.0, 1001.0], [100.0, 1000.0]),  # exact with a factor of next to nothing
        ([1000.0, 9000.0], [100.0, 1000.0]),  # exact with a factor of nearly 9
        ([1000.0, 3000.0, 9000.0], [500.0, 2700.0, 8000.0]),
    ],
)
def test_samples_that_no_sensible_network_has_are_met_as_well_as_one_can(latencies, layers):
    def error(factor, rest_us):
        return sum(((factor * us + rest_us) / measured - 1) ** 2 for us, measured in zip(layers, latencies))

    rest = samples_of(latencies, layers)
    factors, rests = [0.5 + 1.5 * i / 300 for i in range(301)], [5.0 * i for i in range(301)]
    best = min(error(factor, rest_us) for factor in factors for rest_us in rests)
    assert rest.rest_us >= 0
    # The factor that is best beside this rest, within its limits.
    slopes = [us / measured for us, measured in zip(layers, latencies)]
    wanted = sum(a * (1 - rest.rest_us / measured) for a, measured in zip(slopes, latencies))
    factor = min(2.0, max(0.5, wanted / sum(a * a for a in slopes)))
    assert error(factor, rest.rest_us) <= best + 1e-9
    assert all(0.5 <= rest.layer_factor(sparsity) <= 2 for sparsity in SPARSITIES)


def test_samples_of_one_sum_of_layers_leave_these_as_they_are():
    rest = samples_of([1000.0, 1100.0], [900.0, 900.0])
    assert (rest.layer_factor(0.95), rest.rest_us) == (1.0, 150.0)


@pytest.mark.parametrize(
    ("sparsities", "sampled"),
    [
        ([0.5, 0.7, 0.8, 0.9, 0.95], (0.95, 0.8, 0.0)),
        ([0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95], (0.95, 0.85, 0.0)),
        ([0.95, 0.5], (0.95, 0.5, 0.0)),
        ([0.95, 0.9], (0.95, 0.9, 0.0)),
        ([0.9], (0.9, 0.0)),
        ([0.85, 0.9], (0.9, 0.0)),
        ([0.97, 0.9, 0.85, 0.8], (0.97, 0.9, 0.0)),
        ([0.5, 0.0], (0.5, 0.0)),
        ([0.5, 0.9, 1.0], (0.9, 0.5, 0.0)),
        ([1.0], (1.0, 0.0)),
    ],
)
def test_a_network_is_sampled_where_searches_look(sparsities, sampled):
    assert sampled_sparsities(sparsities) == sampled


def test_a_pattern_is_for_the_layers_that_hold_a_block():
    network = Network((Layer("small", LinearOp(3, 4, 4)), Layer("large", LinearOp(3, 32, 32), calls=2)))
    assert alike(network, "block:8x1", 0.9) == {"large": LayerChoice(Block(8, 1), 0.9)}
    assert alike(network, "dense", 0.0) == {}


@pytest.mark.parametrize("earlier", [{"dense_us": 7.5}, {"latency_us": 7.5, "layers_us": 7.0, "sparsity": 0.9}])
def test_the_rest_that_an_earlier_version_wrote_is_measured_again(tmp_path, earlier):
    write_rest(tmp_path, REST)
    (path,) = tmp_path.rglob("*.json")
    path.write_text(json.dumps({"network": REST.network, "measured_at": "then", **earlier}))
    assert read_rest(tmp_path, REST.network) is None


def whole(**values):
    sample = {"pattern": "dense", "sparsity": 0.0, "latency_us": 2.0, "layers_us": 1.0}
    return json.dumps({"network": REST.network, "samples": [{**sample, **values}], "measured_at": ""})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        '{"samples": []}',
        json.dumps({"network": REST.network, "samples": [], "measured_at": ""}),
        json.dumps({"network": REST.network, "samples": 3, "measured_at": ""}),
        whole(extra=1),
        whole(latency_us="2"),
        whole(latency_us=None),
        whole(latency_us=0.0),
        whole(latency_us=-1.0),
        whole(layers_us=-1.0),
        whole(latency_us=float("nan")),
        whole(latency_us=float("inf")),
        whole().replace(REST.network, "another"),
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
