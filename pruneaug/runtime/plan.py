"""What computes each layer: the fastest kernel variant that the latency table knows for its choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pruneaug.kernels.variants import Variant, parse_variant
from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Network
from pruneaug.sparsity.patterns import DENSE, Assignment


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one layer is computed: by our kernel of this variant (None: the likeliest one)."""

    variant: Variant | None = None


def plan_layers(network: Network, assignment: Assignment, table: LatencyTable) -> dict[str, LayerPlan]:
    """The plan of every prunable layer. Raises LatencyTableError for a choice that the table does not cover."""
    plans = {}
    for layer in network.layers:
        record = table.record(layer.op, assignment.get(layer.name, DENSE))
        plans[layer.name] = LayerPlan(parse_variant(record.variant) if record.variant else None)
    return plans


def plan_to_json(plan: LayerPlan) -> dict[str, str]:
    return {"variant": "" if plan.variant is None else str(plan.variant)}


def plan_from_json(value: Mapping[str, Any]) -> LayerPlan:
    variant = str(value.get("variant") or "")
    return LayerPlan(parse_variant(variant) if variant else None)
