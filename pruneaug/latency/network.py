"""A network's latency: the table's times of its layers, and the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruneaug.errors import NetworkError
from pruneaug.latency.table import LatencyTable
from pruneaug.network.ops import Op
from pruneaug.sparsity.patterns import DENSE, Assignment, LayerChoice

if TYPE_CHECKING:  # that module imports torch, which a latency table does not need
    from pruneaug.network.layers import Network


@dataclass(frozen=True, slots=True)
class LayerLatency:
    """The time of one layer in one forward pass, all its calls together.

    `latency_us_dense` is what it takes dense in the same network, on the same kernels.
    """

    name: str
    op: Op
    calls: int
    choice: LayerChoice
    latency_us: float
    latency_us_dense: float


@dataclass(frozen=True, slots=True)
class NetworkLatency:
    """The predicted time of one forward pass: its prunable layers and the rest."""

    layers: tuple[LayerLatency, ...]
    rest_us: float

    @property
    def total_us(self) -> float:
        return sum(layer.latency_us for layer in self.layers) + self.rest_us


def predict(network: Network, assignment: Assignment, table: LatencyTable, rest_us: float) -> NetworkLatency:
    """The latency of a network with this assignment; `rest_us` is what all but the prunable layers take.

    Raises LatencyTableError for a choice that the table does not cover, NetworkError for a layer that does not exist.
    """
    if unknown := assignment.keys() - {layer.name for layer in network.layers}:
        raise NetworkError(
            f"an assignment must name prunable layers only, but got {', '.join(sorted(unknown))}; "
            f"the layers are {', '.join(layer.name for layer in network.layers)}"
        )
    layers = []
    for layer in network.layers:
        choice = assignment.get(layer.name, DENSE)
        latency_us, latency_us_dense = table.latency_us(layer.op, choice), table.latency_us(layer.op, DENSE)
        layers.append(
            LayerLatency(
                layer.name, layer.op, layer.calls, choice, layer.calls * latency_us, layer.calls * latency_us_dense
            )
        )
    return NetworkLatency(tuple(layers), rest_us)
