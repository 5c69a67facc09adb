"""The search space: what every layer may be, and how long each choice takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pruneaug.errors import LatencyTableError, SpecError
from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Layer, Network
from pruneaug.sparsity.patterns import DENSE, Assignment, Block, LayerChoice, parse_pattern
from pruneaug.spec.models import LayerRule, SpaceSpec


@dataclass(frozen=True, slots=True)
class LayerSpace:
    """The choices of one layer on the spec's grid, dense first, and the time of each in microseconds (all calls)."""

    layer: Layer
    choices: tuple[LayerChoice, ...]
    latencies_us: tuple[float, ...]

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def patterns(self) -> tuple[Block, ...]:
        """In the spec's order; empty if the layer must stay dense."""
        return tuple(dict.fromkeys(choice.pattern for choice in self.choices if choice.pattern is not None))

    @property
    def sparsity_range(self) -> tuple[float, float]:
        """Lowest and highest sparsity over all patterns."""
        sparsities = [choice.sparsity for choice in self.choices if not choice.is_dense]
        return min(sparsities), max(sparsities)

    def nearest(self, pattern: Block | None, sparsity: float) -> LayerChoice:
        """`pattern` at the sparsity, moved into the pattern's range; dense if the layer may not have the pattern."""
        allowed = [choice.sparsity for choice in self.choices if choice.pattern == pattern and not choice.is_dense]
        if not allowed:
            return DENSE
        return LayerChoice(pattern, min(max(sparsity, min(allowed)), max(allowed)))


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What every layer of a network may be, in the network's order; some layers may have no choice but dense."""

    layers: tuple[LayerSpace, ...]

    @property
    def patterns(self) -> tuple[Block, ...]:
        """All patterns that some layer may have."""
        return tuple(dict.fromkeys(pattern for layer in self.layers for pattern in layer.patterns))

    @property
    def sparsity_range(self) -> tuple[float, float]:
        """Lowest and highest sparsity over all layers."""
        ranges = [layer.sparsity_range for layer in self.layers if layer.patterns]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def groups(self) -> tuple[tuple[LayerSpace, ...], ...]:
        """Layers with the same op and the same choices, together; layers that must stay dense are left out."""
        groups: dict[tuple[str, tuple[LayerChoice, ...]], list[LayerSpace]] = {}
        for layer in self.layers:
            if layer.patterns:
                groups.setdefault((layer.layer.op.key, layer.choices), []).append(layer)
        return tuple(tuple(group) for group in groups.values())

    def size(self) -> int:
        """Number of assignments on the grid."""
        return math.prod(len(layer.choices) for layer in self.layers)

    def best_possible_us(self, rest_us: float = 0.0) -> float:
        """The lowest latency that any assignment on the grid can have, in microseconds."""
        return rest_us + sum(min(layer.latencies_us) for layer in self.layers)


def build_space(network: Network, spec: SpaceSpec, table: LatencyTable) -> SearchSpace:
    """All choices that the spec allows, that fit the layer's weight matrix, and that the table can tell the time of.

    Raises SpecError if a rule matches no layer or if no layer may be anything but dense, LatencyTableError if a
    dense time is missing or nothing else is covered.
    """
    wanted = wanted_choices(network, spec)
    space = SearchSpace(tuple(_layer_space(layer, wanted[layer.name], table) for layer in network.layers))
    if not space.patterns:
        patterns = sorted({str(choice.pattern) for choices in wanted.values() for choice in choices})
        raise LatencyTableError(
            f"the latency table must cover some allowed pattern of some layer, but it holds only dense times "
            f"(wanted: {', '.join(patterns)}); run `pruneaug profile` with this job"
        )
    return space


def wanted_choices(network: Network, spec: SpaceSpec) -> dict[str, tuple[LayerChoice, ...]]:
    """The choices beside dense that the spec allows each layer, whether they were measured or not.

    Raises SpecError if a rule matches no layer or if no layer may be anything but dense.
    """
    _check_rules(network, spec.layers)
    wanted = {layer.name: _wanted(layer, spec) for layer in network.layers}
    if not any(wanted.values()):
        raise SpecError(
            f"some layer must be allowed a pattern that fits its weight matrix, but all of "
            f"{', '.join(wanted)} must stay dense; add smaller patterns to `space.patterns` or remove `dense: true`"
        )
    return wanted


def keep_faster(assignment: Assignment, network: Network, table: LatencyTable) -> dict[str, LayerChoice]:
    """The assignment without the layers that it would not make faster than dense by more than the noise.

    Such a layer would lose accuracy for nothing.
    """

    def is_faster(layer: Layer, choice: LayerChoice) -> bool:
        gain_us = table.latency_us(layer.op, DENSE) - table.latency_us(layer.op, choice)
        return gain_us > table.noise_us(layer.op, choice)

    chosen = {layer: assignment.get(layer.name, DENSE) for layer in network.layers}
    return {layer.name: choice for layer, choice in chosen.items() if not choice.is_dense and is_faster(layer, choice)}


def assigned_sparsity(assignment: Assignment, network: Network) -> float:
    """The fraction of the prunable layers' weights that the assignment makes zero."""
    sizes = {layer.name: math.prod(layer.op.matrix_shape) for layer in network.layers}
    return sum(size * assignment.get(name, DENSE).sparsity for name, size in sizes.items()) / sum(sizes.values())


def assignment_to_json(assignment: Assignment) -> dict[str, object]:
    return {name: choice.to_json() for name, choice in assignment.items()}


def assignment_from_json(value: Mapping[str, Mapping[str, object]]) -> dict[str, LayerChoice]:
    return {name: LayerChoice.from_json(choice) for name, choice in value.items()}


def _check_rules(network: Network, rules: list[LayerRule]) -> None:
    kept = {layer.name: layer.reason for layer in network.kept_dense}
    for index, rule in enumerate(rules):
        if any(fnmatchcase(layer.name, rule.match) for layer in network.layers):
            continue
        dense = [name for name in kept if fnmatchcase(name, rule.match)]
        if dense and rule.dense:
            continue
        why = f"only {dense[0]!r}, which stays dense: {kept[dense[0]]}" if dense else "none"
        raise SpecError(
            f"space.layers.{index}.match: a rule must match a prunable layer, but {rule.match!r} matches {why}; "
            f"prunable layers are {', '.join(layer.name for layer in network.layers)}"
        )


def matching_rule(name: str, rules: Sequence[LayerRule]) -> LayerRule | None:
    """The first rule that matches the layer's name."""
    return next((rule for rule in rules if fnmatchcase(name, rule.match)), None)


def _wanted(layer: Layer, spec: SpaceSpec) -> tuple[LayerChoice, ...]:
    """The choices beside dense that the spec allows and that fit the layer's weight matrix; the first rule holds."""
    rule = matching_rule(layer.name, spec.layers)
    if rule is not None and rule.dense:
        return ()
    patterns = rule.patterns if rule is not None and rule.patterns is not None else spec.patterns
    sparsities = rule.sparsities if rule is not None and rule.sparsities is not None else spec.sparsities
    rows, cols = layer.op.matrix_shape
    blocks = [block for block in map(parse_pattern, dict.fromkeys(patterns)) if block is not None]
    fitting = [block for block in blocks if block.rows <= rows and block.cols <= cols]
    return tuple(LayerChoice(block, sparsity) for block in fitting for sparsity in sorted(set(sparsities)))


def _layer_space(layer: Layer, wanted: tuple[LayerChoice, ...], table: LatencyTable) -> LayerSpace:
    choices = (DENSE, *(choice for choice in wanted if _is_covered(layer, choice, table)))
    return LayerSpace(layer, choices, tuple(layer.calls * table.latency_us(layer.op, choice) for choice in choices))


def _is_covered(layer: Layer, choice: LayerChoice, table: LatencyTable) -> bool:
    grid = table.grid(layer.op, choice.pattern)
    return bool(grid) and min(grid) <= choice.sparsity <= max(grid)
