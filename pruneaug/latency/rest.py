"""What a network's forward pass takes beside its prunable layers: measured once a network and platform, and kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import lsq_linear
from torch.export import ExportedProgram

from pruneaug.errors import LatencyTableError
from pruneaug.files import atomic_write_text
from pruneaug.network.layers import Network
from pruneaug.sparsity.patterns import LayerChoice, parse_pattern

_LEAST_FACTOR, _LARGEST_FACTOR = 0.5, 2.0  # beyond that it was not the layers that made the difference


@dataclass(frozen=True, slots=True)
class Sample:
    """Measured microseconds of a network whose layers were pruned alike, and of these layers by the table then."""

    pattern: str
    sparsity: float
    latency_us: float
    layers_us: float


@dataclass(frozen=True, slots=True)
class Rest:
    """What a network takes beside its layers, by one sample or several that differ in sparsity.

    The sparser its layers, the less of the time is theirs, and the less of their error is in what remains.
    """

    network: str  # digest
    samples: tuple[Sample, ...]
    measured_at: str

    @property
    def rest_us(self) -> float:
        """What remains without the layers, at least 0."""
        return self._fitted()[1]

    @property
    def layer_factor(self) -> float:
        """What a layer takes in the network, as a multiple of its time in the table; 1 where there is one sample.

        In a network a layer's neighbours decide how near its inputs and weights are, which a table can only assume.
        """
        return self._fitted()[0]

    def _fitted(self) -> tuple[float, float]:
        """(factor, rest): the least squares of (factor * layers + rest) / latency - 1 over the samples."""
        latencies = np.array([sample.latency_us for sample in self.samples])
        layers = np.array([sample.layers_us for sample in self.samples])
        if layers.min() == layers.max():
            return 1.0, max(0.0, float((latencies - layers).mean()))
        rows = np.stack([layers / latencies, 1 / latencies], axis=1)
        scale = np.array([1.0, latencies.mean()])  # of unknowns alike in size
        bounds = [_LEAST_FACTOR, 0.0], [_LARGEST_FACTOR, np.inf]
        factor, rest = lsq_linear(rows * scale, np.ones(len(layers)), bounds).x * scale
        return float(factor), float(rest)


def alike(network: Network, pattern: str, sparsity: float) -> dict[str, LayerChoice]:
    """The same choice for every layer whose weight matrix holds a block of the pattern; none for "dense"."""
    block = parse_pattern(pattern)
    if block is None:
        return {}
    choice = LayerChoice(block, sparsity)
    return {layer.name: choice for layer in network.layers if block.fits(layer.op.matrix_shape)}


def sampled_sparsities(sparsities: Sequence[float]) -> tuple[float, ...]:
    """The largest, and that which keeps the nearest to six times as much: between them lie most networks of a search.

    The largest alone if none keeps twice as much: noise would decide what the difference says. Empty layers, of
    sparsity 1, are like no network.
    """
    sparsities = [sparsity for sparsity in sparsities if sparsity < 1] or sparsities
    largest = max(sparsities)
    kept = {sparsity: (1 - sparsity) / (1 - largest) for sparsity in sparsities if sparsity < largest}
    others = [sparsity for sparsity in kept if kept[sparsity] >= 2]
    return largest, *sorted(others, key=lambda sparsity: abs(math.log(kept[sparsity] / 6)))[:1]


def network_digest(program: ExportedProgram, network: Network) -> str:
    """16 hexadecimal digits: equal for networks of the same operators, ops and sizes, whatever their weights."""
    layers = [(layer.name, layer.op.key, layer.calls) for layer in network.layers]
    return hashlib.sha256(f"{program.graph}\n{layers}".encode()).hexdigest()[:16]


def read_rest(folder: str | Path, digest: str) -> Rest | None:
    """The stored rest of a network in a platform's folder; None if it was not measured. Raises LatencyTableError."""
    path = _path(folder, digest)
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and {"dense_us", "latency_us"} & data.keys():
            return None  # of an earlier version, which measured networks once; a profile measures it again
        rest = Rest(**{**data, "samples": tuple(Sample(**sample) for sample in data["samples"])})
        if rest.network != digest or not rest.samples or not all(_is_sound(sample) for sample in rest.samples):
            raise ValueError(f"it holds {rest}")
    except (OSError, ValueError, TypeError) as error:
        raise LatencyTableError(
            f"{path} must hold the rest of network {digest}, but {error}; delete it and profile again"
        ) from error
    return rest


def write_rest(folder: str | Path, rest: Rest) -> None:
    """Raises StorageError."""
    atomic_write_text(_path(folder, rest.network), json.dumps(asdict(rest), indent=1) + "\n")


def _is_sound(sample: Sample) -> bool:
    return 0 < sample.latency_us < math.inf and 0 <= sample.layers_us < math.inf


def _path(folder: str | Path, digest: str) -> Path:
    return Path(folder) / "rest" / f"{digest}.json"
