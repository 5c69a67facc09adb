"""Report data of a realistic size: 60 trials of a 20-layer network, and its awkward relatives."""

import math
import random
from typing import Any

import pytest

PATTERNS = ("block:1x1", "block:4x1", "block:8x1", "block:16x1")


def example_report(trials: int = 60, layers: int = 20) -> dict[str, Any]:
    """A search that paid: 2.9 times faster at 0.4 points."""
    rng = random.Random(7)
    per_layer = [_layer(rng, index, layers) for index in range(layers)]
    rest_us = 212.0
    dense_ms = (sum(layer["latency_us_dense"] for layer in per_layer) + rest_us) / 1000
    best_ms = (sum(layer["latency_us"] for layer in per_layer) + rest_us) / 1000
    return {
        "version": 1,
        "created_at": "2026-11-21 14:08 UTC",
        "job": {
            "name": "vgg16 on CIFAR-10",
            "spec": {
                "version": 1,
                "run": "runs/vgg16",
                "task": {"name": "parquet-images", "options": {"train": "train.parquet"}, "model": {"name": "vgg16"}},
                "search": {"strategy": "joint", "trials": trials, "max_accuracy_loss": 0.005},
            },
        },
        "platform": {
            "name": "epyc-9575f-2t",
            "cpu": "AMD EPYC 9575F 64-Core Processor",
            "threads": 2,
            "versions": {"pruneaug": "0.1.0", "torch": "2.13.0", "apache-tvm": "0.27.0"},
        },
        "network": {"name": "vgg16", "parameters": 14_728_266, "macs": 313_730_560},
        "validation_examples": 5000,
        "constraint": {"max_accuracy_loss": 0.005, "objective": "latency", "max_latency_ms": None},
        "dense": {
            "accuracy_validation": 0.9324,
            "accuracy_test": 0.9287,
            "latency_ms_predicted": dense_ms,
            "latency_ms_measured": dense_ms * 1.03,
            "latency_ms_p10": dense_ms * 0.99,
            "latency_ms_p90": dense_ms * 1.11,
            "sparsity": 0.0,
            "operation_sparsity": 0.0,
            "size_bytes": 58_913_064,
        },
        "best": {
            "accuracy_validation": 0.9286,
            "accuracy_test": 0.9251,
            "latency_ms_predicted": best_ms,
            "latency_ms_measured": best_ms * 0.972,
            "latency_ms_p10": best_ms * 0.95,
            "latency_ms_p90": best_ms * 1.06,
            "sparsity": 0.874,
            "operation_sparsity": 0.823,
            "size_bytes": 9_106_220,
            "number": trials // 2,
            "repeats": {"accuracies": [0.9279, 0.9288, 0.9275], "mean": 0.92807, "spread": 0.00067, "failed": 0},
        },
        "baselines": [
            _baseline("onnxruntime", dense_ms * 1.01),
            {**_baseline("openvino", None), "error": "not installed: pip install openvino"},
            _baseline("torch.compile", dense_ms * 1.9),
            _baseline("torch eager", dense_ms * 2.6),
        ],
        "artifact": "checkpoint/artifact-amd-epyc/network.so",
        "best_dense": "onnxruntime",
        "speedup_measured": dense_ms * 1.01 / (best_ms * 0.972),
        "prediction_error": best_ms / (best_ms * 0.972) - 1,
        "layers": per_layer,
        "kept_dense": [
            {"name": "features.0", "reason": "rule `features.0`: dense"},
            {"name": "embeddings.word_embeddings", "reason": "Embedding: only Linear and Conv2d are pruned"},
        ],
        "rest_us": rest_us,
        "trials": [_trial(rng, number, trials, dense_ms, best_ms) for number in range(trials)],
        "search": {
            "strategy": "joint",
            "trials_done": trials,
            "skipped": 9,
            "stopped": 0,
            "failed": 1,
            "seconds": 4521.0,
            "seconds_own": 38.0,
            "epochs": 50.0,
            "epochs_final": 5.0,
        },
        "status": {"state": "exported", "wanted": trials, "running": [], "updated_at": None},
        "analysis": {"front": [], "hypervolume": None, "faster": None},
        "warnings": ["The machine was busy while measuring (load 1.4 on 2 cores); the times scatter more than usual."],
        "verdict": None,
    }


def infeasible_report() -> dict[str, Any]:
    """A search in which every network lost too much."""
    data = example_report()
    for trial in data["trials"]:
        if trial["accuracy_loss"] is not None:
            trial["accuracy_loss"] = abs(trial["accuracy_loss"]) + 0.013
            trial["accuracy_validation"] = 0.9324 - trial["accuracy_loss"]
        trial["feasible"] = False
        if trial["state"] == "skipped":
            trial.update(state="complete", accuracy_loss=0.031, accuracy_validation=0.9014)
    data.update(best=None, layers=[], speedup_measured=None, prediction_error=None, warnings=[])
    data["search"]["skipped"] = 0
    return data


def one_layer_report() -> dict[str, Any]:
    """One linear layer, three trials, nothing else measured than pruneaug's own two networks."""
    data = example_report(trials=3, layers=1)
    dense_us, pruned_us, rest_us = 168.0, 31.0, 9.0
    data["layers"][0].update(name="fc", op="linear-t128-i768-o3072", pattern="block:16x1", sparsity=0.9)
    data["layers"][0].update(latency_us_dense=dense_us, latency_us=pruned_us)
    for key, us in (("dense", dense_us + rest_us), ("best", pruned_us + rest_us)):
        times = {"predicted": us / 1000, "measured": 1.02 * us / 1000}
        data[key].update({f"latency_ms_{name}": value for name, value in times.items()})
        data[key].update(latency_ms_p10=us / 1000, latency_ms_p90=1.1 * us / 1000)
    for number, trial in enumerate(data["trials"]):
        trial.update(state="complete", error=None, feasible=True, accuracy_loss=0.001, accuracy_validation=0.9314)
        trial["latency_ms_predicted"] = (pruned_us + rest_us) / 1000 * (1 + 0.4 * number)
    data.update(baselines=[], best_dense="pruneaug-dense", kept_dense=[], warnings=[], rest_us=rest_us)
    data["speedup_measured"] = (dense_us + rest_us) / (pruned_us + rest_us)
    data["search"].update(skipped=0, failed=0, seconds=212.0, epochs=3.0)
    return data


def _baseline(runtime: str, latency_ms: float | None) -> dict[str, Any]:
    p10, p90 = (latency_ms * 0.97, latency_ms * 1.12) if latency_ms else (None, None)
    return {"runtime": runtime, "latency_ms": latency_ms, "p10": p10, "p90": p90, "error": None}


def _layer(rng: random.Random, index: int, layers: int) -> dict[str, Any]:
    stage = 4 * index // layers
    channels, side = 64 * 2**stage, 32 // 2**stage
    dense_us = channels * channels * 9 * side * side / 2.2e5 * rng.uniform(0.9, 1.15)
    pattern = "dense" if index in (0, layers - 2) else rng.choice(PATTERNS)
    sparsity = 0.0 if pattern == "dense" else rng.choice((0.5, 0.7, 0.8, 0.9, 0.95))
    gain = {"dense": 1.0, "block:1x1": 0.45, "block:4x1": 0.8, "block:8x1": 0.93, "block:16x1": 0.9}[pattern]
    op = f"conv2d-b1-i{channels}-o{channels}-s{side}x{side}-k3x3-d1x1-p1.1.1.1-st1x1-g1"
    return {
        "name": f"features.{stage}.{index}.conv",
        "op": op,
        "calls": 1,
        "pattern": pattern,
        "sparsity": sparsity,
        "latency_us_dense": dense_us,
        "latency_us": dense_us if pattern == "dense" else dense_us * min(1.3, (1 - sparsity) / gain + 0.03),
        "latency_us_least": 0.09 * dense_us,
        "lost_more": 0.002 * (index % 7) * (1 - sparsity),
        "correlation": 0.42 if index % 5 == 0 else None,
        "library": "tvm",
        "variant": "" if pattern == "dense" else "tile48",
    }


def _trial(rng: random.Random, number: int, trials: int, dense_ms: float, best_ms: float) -> dict[str, Any]:
    share = rng.uniform(0.75 * best_ms, 0.95 * dense_ms) / dense_ms
    loss = 0.055 * math.exp(-5.5 * share) * rng.uniform(0.3, 2.4) - 0.001
    if share * dense_ms < best_ms:
        loss = max(loss, rng.uniform(0.0055, 0.02))
    if number % 13 == 5:
        loss = rng.uniform(0.1, 0.6)
    trial = {
        "number": number,
        "state": "complete",
        "latency_ms_predicted": share * dense_ms,
        "accuracy_validation": 0.9324 - loss,
        "accuracy_loss": loss,
        "feasible": loss <= 0.005,
        "sparsity": min(0.97, 1.02 - share),
        "epochs": 1.0,
        "rungs": [],
        "seconds": rng.uniform(55, 110),
        "error": None,
    }
    if number == trials // 2:
        trial.update(
            state="complete",
            latency_ms_predicted=best_ms,
            accuracy_validation=0.9279,
            accuracy_loss=0.0045,
            feasible=True,
        )
    elif number > trials // 2 and number % 3 == 0 and share * dense_ms > best_ms:
        trial.update(
            state="skipped", accuracy_validation=None, accuracy_loss=None, feasible=False, seconds=0.1, epochs=0.0
        )
    elif number == 17:
        trial.update(
            state="failed",
            accuracy_validation=None,
            accuracy_loss=None,
            feasible=False,
            error="TrainingError: the loss is not finite at step 118; lower the learning rate",
        )
    return trial


@pytest.fixture
def report() -> dict[str, Any]:
    return example_report()


@pytest.fixture
def infeasible() -> dict[str, Any]:
    return infeasible_report()


@pytest.fixture
def one_layer() -> dict[str, Any]:
    return one_layer_report()
