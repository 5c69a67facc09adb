"""What a network's forward pass takes beside its prunable layers: measured once a network and platform, and kept."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from torch.export import ExportedProgram

from pruneaug.errors import LatencyTableError
from pruneaug.files import atomic_write_text
from pruneaug.network.layers import Network
from pruneaug.sparsity.patterns import LayerChoice, parse_pattern


@dataclass(frozen=True, slots=True)
class Rest:
    """Measured microseconds of a network whose layers were pruned alike, and of these layers by the table of that time.

    The sparser they are, the less of the time is theirs, and the less of their error is in what remains.
    """

    network: str  # digest
    latency_us: float
    layers_us: float
    pattern: str
    sparsity: float
    measured_at: str

    @property
    def rest_us(self) -> float:
        """What remains without the layers; 0 where these alone take longer."""
        return max(0.0, self.latency_us - self.layers_us)


def alike(network: Network, pattern: str, sparsity: float) -> dict[str, LayerChoice]:
    """The same choice for every layer whose weight matrix holds a block of the pattern; none for "dense"."""
    block = parse_pattern(pattern)
    if block is None:
        return {}
    choice = LayerChoice(block, sparsity)
    return {layer.name: choice for layer in network.layers if block.fits(layer.op.matrix_shape)}


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
        if "dense_us" in data:
            return None  # of an earlier version, which measured dense networks; a profile measures it again
        rest = Rest(**data)
        if rest.network != digest or not 0 <= rest.latency_us < math.inf or not 0 <= rest.layers_us < math.inf:
            raise ValueError(f"it holds {rest}")
    except (OSError, ValueError, TypeError) as error:
        raise LatencyTableError(
            f"{path} must hold the rest of network {digest}, but {error}; delete it and profile again"
        ) from error
    return rest


def write_rest(folder: str | Path, rest: Rest) -> None:
    """Raises StorageError."""
    atomic_write_text(_path(folder, rest.network), json.dumps(asdict(rest), indent=1) + "\n")


def _path(folder: str | Path, digest: str) -> Path:
    return Path(folder) / "rest" / f"{digest}.json"
