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


@dataclass(frozen=True, slots=True)
class Rest:
    """Measured latency of a dense network in microseconds."""

    network: str  # digest
    dense_us: float
    measured_at: str

    def beside(self, layers_us: float) -> float:
        """What remains without the layers' times by the table as it is now; 0 where these alone take longer."""
        return max(0.0, self.dense_us - layers_us)


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
        rest = Rest(**json.loads(path.read_text(encoding="utf-8")))
        if rest.network != digest or not 0 <= rest.dense_us < math.inf:
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
