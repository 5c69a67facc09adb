"""What trackers record of a trial: plain names with plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from pruneaug.trackers.protocol import TrialData

_METRICS = {
    "latency_ms": ("latency_us", 1e-3),
    "sparsity": ("sparsity", 1.0),
    "accuracy_validation": ("accuracy_validation", 1.0),
    "accuracy_loss": ("accuracy_loss", 1.0),
    "epochs": ("epochs", 1.0),
    "seconds": ("seconds", 1.0),
}


def metrics_of(record: TrialData) -> dict[str, float]:
    """The figures of a trial that are known: name -> value, latency in milliseconds, the others as in the record."""
    known = {name: (record.get(key), scale) for name, (key, scale) in _METRICS.items()}
    return {name: value * scale for name, (value, scale) in known.items() if _is_finite(value)}


def rungs_of(record: TrialData) -> list[tuple[float, float]]:
    """(epochs, validation accuracy) wherever the fine-tuning of a trial was judged on its way."""
    return [(epochs, accuracy) for epochs, accuracy in record.get("rungs") or () if _is_finite(accuracy)]


def parameters_of(record: TrialData) -> dict[str, str | float | bool]:
    """What the strategy proposed, and each layer's pattern and sparsity: `layer.NAME` -> "block:8x1@0.9"."""
    proposed = (record.get("params") or {}).items()
    plain = {str(key): value if isinstance(value, str | int | float) else str(value) for key, value in proposed}
    layers = {f"layer.{name}": _choice(choice) for name, choice in (record.get("assignment") or {}).items()}
    return plain | layers


def _choice(choice: Mapping[str, Any]) -> str:
    sparsity = choice.get("sparsity")
    return f"{choice.get('pattern')}@{sparsity:.4g}" if _is_finite(sparsity) else str(choice.get("pattern"))


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
