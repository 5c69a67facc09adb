"""What computes each layer: the fastest kernel variant that the latency table knows for its choice."""

from __future__ import annotations

from collections.abc import Mapping

from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Network
from pruneaug.sparsity.patterns import DENSE, Assignment

Plans = Mapping[str, str]
"""Layer name -> the kernel variant that computes it, as its latency record names it; "" is the likeliest one."""


def plan_layers(network: Network, assignment: Assignment, table: LatencyTable) -> dict[str, str]:
    """The plan of every prunable layer. Raises LatencyTableError for a choice that the table does not cover."""
    return {layer.name: table.record(layer.op, assignment.get(layer.name, DENSE)).variant for layer in network.layers}
