"""What a network's forward pass takes beside its prunable layers: measured once a network and platform, and kept."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from pruneaug.errors import LatencyTableError
from pruneaug.files import atomic_write_text
from pruneaug.network.layers import Network


@dataclass(frozen=True, slots=True)
class Rest:
    """Measured latency of the dense network in microseconds, and what remains of it without the layers' times.

    `rest_us` is 0 where the layers alone are measured to take longer than the network does.
    """

    network: str  # digest
    dense_us: float
    layers_us: float
    measured_at: str

    @property
    def rest_us(self) -> float:
        return max(0.0, self.dense_us - self.layers_us)


def network_digest(model: nn.Module, network: Network) -> str:
    """16 hexadecimal digits: equal for networks of the same modules, ops and sizes, whatever their weights."""
    modules = re.sub(r" at 0x[0-9a-f]+", "", str(model))  # addresses of functions that a module shows
    layers = [(layer.name, layer.op.key, layer.calls) for layer in network.layers]
    return hashlib.sha256(f"{modules}\n{layers}".encode()).hexdigest()[:16]


def read_rest(folder: str | Path, digest: str) -> Rest | None:
    """The stored rest of a network in a platform's folder; None if it was not measured. Raises LatencyTableError."""
    path = _path(folder, digest)
    if not path.exists():
        return None
    try:
        rest = Rest(**json.loads(path.read_text(encoding="utf-8")))
        if rest.network != digest or not all(0 <= us < math.inf for us in (rest.dense_us, rest.layers_us)):
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
