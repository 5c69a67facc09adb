"""What a network's forward pass takes beside its prunable layers: measured once a network and platform, and kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import lsq_linear
from torch.export import ExportedProgram

from pruneaug.errors import LatencyTableError
from pruneaug.files import atomic_write_text
from pruneaug.network.layers import Network
from pruneaug.network.ops import can_have
from pruneaug.sparsity.patterns import NM, LayerChoice, parse_pattern

_LEAST_FACTOR, _LARGEST_FACTOR = 0.5, 2.0  # beyond that it was not the layers that made the difference
_LEAST_KEPT, _LEAST_US = 1e-3, 1e-3  # of a network without weights, or without layers


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
        """What remains without the layers, at least 0, by one factor for all of them.

        The least squares of (factor * layers + rest) / latency - 1 over the samples, the factor within its limits.
        """
        latencies, layers = self._times()
        if layers.min() == layers.max():
            return max(0.0, float((latencies - layers).mean()))
        rows = np.stack([layers / latencies, 1 / latencies], axis=1)
        scale = np.array([1.0, latencies.mean()])  # of unknowns alike in size
        bounds = [_LEAST_FACTOR, 0.0], [_LARGEST_FACTOR, np.inf]
        # An active set ends at the solution itself; the default method ends somewhere near one at a bound.
        solution = lsq_linear(rows * scale, np.ones(len(layers)), bounds, method="bvls")
        return float(solution.x[1] * scale[1])

    def layer_factor(self, sparsity: float) -> float:
        """What a layer of this sparsity takes in the network, as a multiple of its time in the table.

        Each sample has the factor that is right for it, beside the rest; between samples it is linear in the logarithm
        of the weights kept, beyond them constant. It is 1 where the samples do not differ. In a network a layer's
        neighbours decide how near its inputs and weights are, which a table can only assume; and the fewer weights a
        network has, the more of them stay in a cache.
        """
        latencies, layers = self._times()
        if layers.min() == layers.max():
            return 1.0
        factors = (latencies - self.rest_us) / np.maximum(layers, _LEAST_US)
        kept = np.log([max(1 - sample.sparsity, _LEAST_KEPT) for sample in self.samples])
        order = np.argsort(kept)
        factor = np.interp(math.log(max(1 - sparsity, _LEAST_KEPT)), kept[order], factors[order])
        return float(np.clip(factor, _LEAST_FACTOR, _LARGEST_FACTOR))

    def _times(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Of the networks, and of their layers by the table."""
        return (
            np.array([sample.latency_us for sample in self.samples]),
            np.array([sample.layers_us for sample in self.samples]),
        )


def alike(network: Network, pattern: str, sparsity: float) -> dict[str, LayerChoice]:
    """The same choice for every layer that can have the pattern; none for "dense".

    Of N:M at most its own sparsity.
    """
    block = parse_pattern(pattern)
    if block is None:
        return {}
    choice = LayerChoice(block, min(sparsity, block.sparsity) if isinstance(block, NM) else sparsity)
    return {layer.name: choice for layer in network.layers if can_have(layer.op, block)}


def sampled_sparsities(sparsities: Sequence[float]) -> tuple[float, ...]:
    """The largest, that which keeps the nearest to three times as much, and dense: between them lies what searches try.

    The second only if it keeps about twice as much as the largest: noise would decide what a smaller difference says.
    Empty layers, of sparsity 1, are like no network.
    """
    sparsities = [sparsity for sparsity in sparsities if sparsity < 1] or list(sparsities)
    largest = max(sparsities)
    kept = {sparsity: (1 - sparsity) / (1 - largest) for sparsity in sparsities if sparsity < largest}
    others = [sparsity for sparsity in kept if kept[sparsity] > 1.9]
    nearest = sorted(others, key=lambda sparsity: abs(math.log(kept[sparsity] / 3)))[:1]
    return tuple(dict.fromkeys((largest, *nearest, 0.0)))


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
