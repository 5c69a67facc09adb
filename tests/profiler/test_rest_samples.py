"""The networks that are run for the rest, and what their times say."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pruneaug.errors import LatencyTableError, MeasurementError
from pruneaug.latency.rest import alike, network_digest
from pruneaug.network.layers import find_layers, get_weight
from pruneaug.profiler import rest as sampling
from pruneaug.profiler.network import NetworkTime
from pruneaug.profiler.place import Place
from pruneaug.profiler.rest import measure_rest, sample_network
from pruneaug.runtime.graph import export_program
from pruneaug.testing.platform import ANALYTIC_PLATFORM, analytic_table

EXAMPLE = (torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)),)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def rest_of(monkeypatch, result, table=None, **values):
    dense = model()
    network = find_layers(dense, EXAMPLE)
    subjects = []

    def timed(given, platform, **_):
        subjects.extend(given)
        return tuple(
            replace(result, latency_ms=result.latency_ms and result.latency_ms / 2**i) for i in range(len(given))
        )

    monkeypatch.setattr("pruneaug.profiler.place.time_networks", timed)
    table = table or analytic_table([layer.op for layer in network.layers], ["block:4x1"], [0.5, 0.75])
    monkeypatch.setattr(sampling, "plan_layers", lambda *args: "the plans of the table")
    sampled = sample_network(dense, EXAMPLE, network, table, **values)
    return measure_rest(sampled, Place(ANALYTIC_PLATFORM)), subjects, network


def test_the_rest_keeps_the_time_of_the_network_pruned_alike(monkeypatch):
    time = NetworkTime("", 0.5, 0.4, 0.6, 9, 0.0)
    rest, subjects, network = rest_of(monkeypatch, time, pattern="block:4x1", sparsities=(0.5, 0.75))
    for sample, subject, sparsity, latency_us in zip(rest.samples, subjects, (0.5, 0.75), (500.0, 250.0), strict=True):
        assert (sample.latency_us, sample.pattern, sample.sparsity) == (latency_us, "block:4x1", sparsity)
        assert set(subject.masks) == set(alike(network, "block:4x1", sparsity))
        for layer in network.layers:
            assert subject.masks[layer.name].shape == get_weight(model(), layer.name).shape
            assert abs(1 - float(subject.masks[layer.name].float().mean()) - sparsity) < 0.1
    assert rest.samples[0].layers_us > rest.samples[1].layers_us > 0
    assert rest.network == network_digest(export_program(model(), EXAMPLE), network)


def test_layers_that_could_not_be_measured_sparse_are_dense_for_the_rest(monkeypatch):
    table = analytic_table([layer.op for layer in find_layers(model(), EXAMPLE).layers], [], [])
    time = NetworkTime("", 0.5, 0.4, 0.6, 9, 0.0)
    rest, (subject,), _ = rest_of(monkeypatch, time, table, pattern="block:4x1", sparsities=(0.5,))
    assert (rest.samples[0].latency_us, dict(subject.masks)) == (500.0, {})


def test_the_rest_keeps_the_dense_networks_time(monkeypatch):
    rest, (subject,), network = rest_of(monkeypatch, NetworkTime("", 0.5, 0.4, 0.6, 9, 0.0))
    assert [sample.latency_us for sample in rest.samples] == [500.0]
    assert rest.network == network_digest(export_program(model(), EXAMPLE), network)
    assert (subject.plans, dict(subject.masks)) == ("the plans of the table", {})


def test_a_dense_network_that_does_not_run_has_no_rest(monkeypatch):
    with pytest.raises(MeasurementError, match="must run on this platform, but its process died of SIGSEGV"):
        rest_of(monkeypatch, NetworkTime("", None, None, None, 0, None, "its process died of SIGSEGV"))


def test_a_network_whose_layers_were_not_profiled_has_no_rest():
    dense = model()
    with pytest.raises(LatencyTableError, match="run `pruneaug profile`"):
        sample_network(dense, EXAMPLE, find_layers(dense, EXAMPLE), analytic_table([], [], []))
