"""An export's checkpoint holds the compiled network that was measured."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import pruneaug
from pruneaug.errors import CheckpointError
from pruneaug.exporter.checkpoint import read_checkpoint
from pruneaug.profiler.network import time_networks
from pruneaug.testing.network import analytic_times
from pruneaug.testing.task import ToyTask


def relative_error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.slow
@pytest.mark.parametrize("measured", [True, False])
def test_the_network_that_an_export_compiles_is_in_the_checkpoint_and_needs_no_model(toy_at, monkeypatch, measured):
    folder = toy_at("searched")
    briefly = partial(time_networks, rounds=1, turn_s=0.01) if measured else time_networks
    monkeypatch.setattr("pruneaug.profiler.place.time_networks", briefly)
    monkeypatch.setattr("pruneaug.api.exporting.BASELINES", ())

    exported = pruneaug.export(folder / "run", measured=measured)

    opened = read_checkpoint(exported.checkpoint)
    artifact = f"checkpoint/artifact-{opened.info['platform']['name']}/network.so"
    assert exported.report["artifact"] == artifact
    assert artifact in (folder / "run" / "report.html").read_text()
    assert (exported.report["best"]["latency_ms_measured"] is None) is not measured
    assert not any("artifact" in warning for warning in exported.report["warnings"])
    plain = ToyTask().build_model().eval()
    plain.load_state_dict(dict(opened.weights))
    with torch.no_grad():
        expected = plain(*opened.example_inputs)
    network = pruneaug.load(exported.checkpoint, artifact=True)
    assert relative_error(network(*opened.example_inputs), expected) < 1e-5
    assert relative_error(pruneaug.load(folder / "run" / artifact)(*opened.example_inputs), expected) < 1e-5


def test_an_artifact_that_cannot_be_saved_is_a_warning_and_the_checkpoint_is_whole(toy_at, monkeypatch):
    def full(*args, **kwargs):
        return tuple(replace(time, save_error="no room") for time in analytic_times(*args, **kwargs))

    folder = toy_at("searched")
    monkeypatch.setattr("pruneaug.profiler.place.time_networks", full)
    for measured in (True, False):
        exported = pruneaug.export(folder / "run", measured=measured)
        assert exported.report["artifact"] is None
        assert "the artifact could not be saved: no room" in exported.report["warnings"]
        assert pruneaug.load(exported.checkpoint, trust_code=True).report.products > 0
        with pytest.raises(CheckpointError, match="holds no compiled network"):
            pruneaug.load(exported.checkpoint, artifact=True)
