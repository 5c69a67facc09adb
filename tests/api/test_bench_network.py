"""Networks with random weights: what is pruned, what is measured, and what is wrong in a request."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from pruneaug.api.bench_network import SAMPLES, Sample, bench_network, build_network, kept_dense, prune
from pruneaug.errors import InputError, PluginError
from pruneaug.network.layers import find_layers, get_weight
from pruneaug.profiler.network import time_networks
from pruneaug.profiler.runtimes import RUNTIMES
from pruneaug.report.data import OWN_DENSE, OWN_SPARSE
from pruneaug.sparsity.masks import check_mask, mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import Block
from pruneaug.tasks import MODELS
from pruneaug.testing.network import analytic_times

MODULE = """
import torch
from torch import nn

def build(in_channels=1):
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    )
"""
KEYS = {
    "network", "pattern", "sparsity", "batch", "threads", "platform", "latency_ms", "best_dense",
    "speedup_vs_best_dense", "predicted_ms", "max_relative_error", "runtimes", "fallbacks", "patterns", "kept_dense",
    "rest", "skipped", "versions", "warnings",
}  # fmt: skip


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A network of the user's own: its name and its sample."""
    (tmp_path / "bench_me.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return {"name": "bench_me:build", "sample": Sample((3, 9, 9)), "trust_code": True}


@pytest.fixture
def measured(computed, monkeypatch):
    """Times are computed; the subjects of every measurement, with its rounds."""
    seen = []

    def times(subjects, platform, *, rounds=None, **values):
        seen.append(([subject.runtime for subject in subjects], rounds))
        return analytic_times(subjects, platform, **values)

    monkeypatch.setattr("pruneaug.profiler.place.time_networks", times)
    return seen


def test_a_machine_that_is_not_quiet_is_a_warning(mine, computed, monkeypatch):
    def times(subjects, platform, **values):
        return tuple(
            replace(time, disturbed=time.runtime != "torch") for time in analytic_times(subjects, platform, **values)
        )

    monkeypatch.setattr("pruneaug.profiler.place.time_networks", times)
    (warning,) = [text for text in bench_network(**mine, against=["torch"], rounds=1)["warnings"] if "become" in text]
    assert f"not become quiet while these were measured: {OWN_DENSE}, {OWN_SPARSE};" in warning


def test_a_network_is_measured_pruned_and_dense_beside_the_others(mine, measured):
    result = bench_network(**mine, against=["torch"], batch=2, threads=1, rounds=3)
    assert result.keys() == KEYS
    assert (result["network"], result["pattern"], result["sparsity"]) == ("bench_me:build", "block:8x1", 0.9)
    assert (result["batch"], result["threads"]) == (2, 1)
    assert result["predicted_ms"] > 0
    assert set(result["latency_ms"]) == {"torch", OWN_DENSE, OWN_SPARSE}
    assert result["speedup_vs_best_dense"] > 1
    assert result["kept_dense"] == [{"name": "4", "reason": "its weight matrix is only 3x16, too small for block:8x1"}]
    assert (result["patterns"], result["skipped"]) == ([], {})
    # The last two are those that predict it, in the same turns and at other sparsities.
    assert measured == [(["torch", OWN_DENSE, OWN_SPARSE, OWN_SPARSE, OWN_SPARSE], 3)]
    samples = result["rest"]["samples"]
    assert [sample["sparsity"] for sample in samples] == [0.95, 0.85, 0.0]
    assert samples[2]["latency_us"] == pytest.approx(1e3 * result["latency_ms"][OWN_DENSE])
    assert samples[0]["latency_us"] < 1e3 * result["latency_ms"][OWN_SPARSE] < samples[1]["latency_us"]
    assert {row["runtime"] for row in result["runtimes"]} == {"torch", OWN_DENSE, OWN_SPARSE}
    assert len(result["runtimes"]) == 3


def test_operators_without_a_kernel_are_listed_with_their_shares(mine, measured, monkeypatch):
    def times(subjects, platform, **values):
        shares = {OWN_DENSE: {"topk": 0.25, "flip": 0.125}, OWN_SPARSE: {}}
        found = analytic_times(subjects, platform, **values)
        return tuple(replace(time, fallbacks=shares.get(time.runtime)) for time in found)

    monkeypatch.setattr("pruneaug.profiler.place.time_networks", times)
    assert bench_network(**mine, against=["torch"])["fallbacks"] == [
        {"runtime": OWN_DENSE, "operators": "topk", "share": 0.25},
        {"runtime": OWN_DENSE, "operators": "flip", "share": 0.125},
    ]


def test_sparsity_0_measures_the_dense_network_alone(mine, measured):
    result = bench_network(**mine, sparsity=0, against=["torch"])
    assert measured == [(["torch", OWN_DENSE], 8)]
    assert (result["pattern"], result["speedup_vs_best_dense"], result["kept_dense"]) == (None, None, [])


def test_of_several_patterns_the_fastest_is_chosen_and_measured_again(mine, measured, monkeypatch):
    def times(subjects, platform, **values):
        ms = {1: None, 2: 3.0, 4: 2.0}  # by a block's rows
        found = analytic_times(subjects, platform, **values)
        heights = [rows_of(subject.masks["0"]) if subject.masks else 0 for subject in subjects]
        return tuple(replace(time, latency_ms=ms.get(height, 9.0)) for time, height in zip(found, heights))

    monkeypatch.setattr("pruneaug.profiler.place.time_networks", times)
    result = bench_network(**mine, patterns=["element", "block:2x1", "block:4x1"], against=[])
    assert result["pattern"] == "block:4x1"
    assert result["latency_ms"] == {OWN_DENSE: 9.0, OWN_SPARSE: 2.0}
    assert [(row["pattern"], row["latency_ms"]) for row in result["patterns"]] == [
        ("block:1x1", None), ("block:2x1", 3.0), ("block:4x1", 2.0),
    ]  # fmt: skip


def rows_of(mask):
    matrix = weight_matrix(mask)
    return max(rows for rows in (1, 2, 4, 8) if check_mask(matrix, Block(rows, 1)))


def test_best_tries_the_blocks_that_fit(mine, measured):
    result = bench_network(**mine, patterns=["best"], against=[])
    assert [row["pattern"] for row in result["patterns"]] == ["block:1x1", "block:4x1", "block:8x1", "block:16x1"]
    assert result["pattern"] in {row["pattern"] for row in result["patterns"]}


def test_an_absent_runtime_is_skipped_by_name(mine, measured, monkeypatch):
    monkeypatch.setattr("pruneaug.profiler.runtimes.find_spec", lambda package: None)
    result = bench_network(**mine)
    assert set(result["skipped"]) == {"onnxruntime", "openvino"}
    assert all("pip install 'pruneaug[peers]'" in reason for reason in result["skipped"].values())
    assert set(result["latency_ms"]) == {"torch", "torch-compile", OWN_DENSE, OWN_SPARSE}


def test_layers_are_pruned_by_magnitude_in_whole_blocks_and_the_dense_network_stays(mine):
    model, inputs = build_network(**mine)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = find_layers(model, inputs)
    subject = prune(model, network, inputs, "block:4x1", 0.75)
    assert list(subject.masks) == ["0"]
    mask = subject.masks["0"]
    assert check_mask(weight_matrix(mask), Block(4, 1))
    assert mask_sparsity(mask) == pytest.approx(0.75, abs=4 / mask.numel())
    expected = nn.functional.conv2d(inputs[0], get_weight(model, "0") * mask, model[0].bias)
    with torch.no_grad():
        pruned = subject.program.module()(*inputs)
        torch.testing.assert_close(pruned, model[1:](expected))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [row["name"] for row in kept_dense(network, "block:4x1")] == ["4"]


def test_the_same_seed_gives_the_same_network_and_inputs():
    (first, (x,)), (second, (y,)) = (build_network("digits_cnn", seed=3, batch=2) for _ in range(2))
    third, (z,) = build_network("digits_cnn", seed=4, batch=2)
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, third[0].weight)
    assert torch.equal(x, y)
    assert not torch.equal(x, z)
    assert x.shape == (2, 1, 32, 32)


@pytest.mark.parametrize("name", ["digits_cnn", "resnet20", "vgg16"])
def test_a_networks_sample_is_what_it_takes(name):
    model, inputs = build_network(name)
    assert model(*inputs).shape == (1, 10)


def test_every_network_without_options_of_its_own_has_a_sample():
    assert set(MODELS.names()) - set(SAMPLES) == {"transformers"}
    tokens = SAMPLES["bert_base"]
    assert (tokens.shape, tokens.vocabulary) == ((128,), 30522)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet51"}, "'resnet51' is neither; did you mean 'resnet50'"),
        ({"sparsity": 1.0}, r"a sparsity must lie in \[0, 1\), but got 1"),
        ({"sparsity": -0.1}, r"a sparsity must lie in \[0, 1\), but got -0.1"),
        ({"sparsity": float("nan")}, r"a sparsity must lie in \[0, 1\), but got nan"),
        ({"patterns": ["8x1"]}, "a pattern must be 'block:ROWSxCOLS'"),
        ({"patterns": ["dense"]}, "patterns must be blocks, such as block:8x1, but got dense"),
        ({"patterns": ["nm:2:4"]}, "patterns must be blocks, such as block:8x1, but got nm:2:4; `bench kernels"),
        ({"patterns": []}, "patterns must be blocks, such as block:8x1, but got none"),
        (
            {"patterns": ["block:64x1"]},
            "block:64x1 must fit the weight matrix of some layer, but these are 16x27, 3x16",
        ),
        ({"against": ["tensorrt"]}, "`against` must name runtimes of torch, torch-compile"),
        ({"batch": 0}, "must be at least 1, but got 0 and 8"),
        ({"sample": None}, "needs the shape of one input, but got none; for example --shape 3x224x224"),
        ({"trust_code": False}, "is code of its own; give `trust_code=True`"),
        ({"threads": 100_000}, "must be between 1 and the"),
    ],
)
def test_a_wrong_request_is_one_error_before_anything_is_measured(mine, measured, changes, message):
    with pytest.raises(InputError, match=message):
        bench_network(**{**mine, **changes})
    assert not measured


def test_code_that_does_not_import_says_so():
    with pytest.raises(PluginError, match="does not import"):
        build_network("no_such_module:build", sample=Sample((3, 9, 9)), trust_code=True)


@pytest.mark.slow
def test_a_tiny_network_is_measured_by_real_processes(mine, monkeypatch):
    briefly = partial(time_networks, turn_s=0.01)
    monkeypatch.setattr("pruneaug.profiler.place.time_networks", briefly)
    result = bench_network(**mine, patterns=["block:4x1"], rounds=1, threads=1)
    rows = {row["runtime"]: row for row in result["runtimes"]}
    assert set(rows) | set(result["skipped"]) == {*RUNTIMES, OWN_DENSE, OWN_SPARSE}
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == {}
    assert result["max_relative_error"] < 1e-5
