"""The search space: what every layer may be, how long each choice takes, and what saliency it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pruneaug.errors import LatencyTableError, SpecError
from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Layer, Network
from pruneaug.searcher.rules import group_of, is_fixed, wanted_choices
from pruneaug.sparsity.patterns import DENSE, Assignment, LayerChoice, Pattern, sort_key
from pruneaug.spec.models import SpaceSpec

Objective = Literal["latency", "accuracy", "front"]

_ROUNDING = 1e-6  # a limit must hold for the same sum in another order too


@dataclass(frozen=True, slots=True)
class LayerSpace:
    """The choices of one layer, dense first; a fixed layer has only the one that it must have.

    The rest is aligned with `choices`: the time of each in microseconds (all calls), what may differ between equal
    times (half the spread of the measured ones), and the saliency that it loses (dense 0), None if there are no scores.
    group: the layers of one name get the same choice, and have the same choices.
    """

    layer: Layer
    choices: tuple[LayerChoice, ...]
    latencies_us: tuple[float, ...]
    noises_us: tuple[float, ...]
    lost: tuple[float, ...] | None = None
    group: str | None = None

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def is_fixed(self) -> bool:
        """Whether it has no choice, not even dense."""
        return not self.choices[0].is_dense

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """In the spec's order; empty if the layer must stay dense."""
        return tuple(dict.fromkeys(choice.pattern for choice in self.choices if choice.pattern is not None))

    @property
    def sparsity_range(self) -> tuple[float, float]:
        """Lowest and highest sparsity over all patterns."""
        sparsities = [choice.sparsity for choice in self.choices if not choice.is_dense]
        return min(sparsities), max(sparsities)

    def nearest(self, pattern: Pattern | None, sparsity: float) -> LayerChoice:
        """`pattern` at the sparsity, moved into the pattern's range; dense if the layer may not have the pattern."""
        if self.is_fixed:
            return self.choices[0]
        allowed = [choice.sparsity for choice in self.choices if choice.pattern == pattern and not choice.is_dense]
        if not allowed:
            return DENSE
        return LayerChoice(pattern, min(max(sparsity, min(allowed)), max(allowed)))


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What every layer of a network may be, in the network's order, and all that is known before any training.

    rest_us: what the network takes beside these layers. max_patterns: how many patterns, dense aside, a network may
    have. share: whether the layers of every group get the same choice. objective: what is searched, and max_latency_us
    the limit that goes with `accuracy`.
    """

    layers: tuple[LayerSpace, ...]
    rest_us: float = 0.0
    max_patterns: int | None = None
    share: bool = False
    objective: Objective = "latency"
    max_latency_us: float | None = None

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """All patterns that some layer may have."""
        return tuple(dict.fromkeys(pattern for layer in self.layers for pattern in layer.patterns))

    @property
    def sparsity_range(self) -> tuple[float, float]:
        """Lowest and highest sparsity over all layers."""
        ranges = [layer.sparsity_range for layer in self.layers if layer.patterns]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    @property
    def dense_us(self) -> float:
        """The latency with every layer at its first choice: dense, unless it is fixed."""
        return self.rest_us + sum(layer.latencies_us[0] for layer in self.layers)

    @property
    def allowed_us(self) -> float:
        """The latency limit, less by what a sum of times may differ in another order; infinite if there is none."""
        return math.inf if self.max_latency_us is None else self.max_latency_us * (1 - _ROUNDING)

    @property
    def is_scored(self) -> bool:
        """Whether every layer knows what its choices lose."""
        return all(layer.lost is not None for layer in self.layers)

    def groups(self) -> tuple[tuple[LayerSpace, ...], ...]:
        """The layers of a named group together, and of the others those with the same op and the same choices.

        Layers that must stay dense are left out.
        """
        groups: dict[tuple[str, tuple[LayerChoice, ...]] | str, list[LayerSpace]] = {}
        for layer in self.layers:
            if layer.patterns:
                groups.setdefault(layer.group or (layer.layer.op.key, layer.choices), []).append(layer)
        return tuple(tuple(group) for group in groups.values())

    def sharing(self) -> tuple[tuple[LayerSpace, ...], ...]:
        """The groups whose layers get the same choice: the named ones, and with `share` all."""
        return tuple(group for group in self.groups() if self.share or group[0].group is not None)

    def size(self) -> int:
        """Number of assignments on the grid."""
        return math.prod(len(layer.choices) for layer in self.layers)


def build_space(network: Network, spec: SpaceSpec, table: LatencyTable, rest_us: float = 0.0) -> SearchSpace:
    """All choices that the spec allows, that fit the layer's weight matrix, and that the table can tell the time of.

    Raises SpecError if a rule matches no layer, fixes what was not measured, if no layer may be anything but dense, or
    the layers of a group have nothing else in common, LatencyTableError if a dense time is missing or nothing else is
    covered.
    """
    wanted = wanted_choices(network, spec)
    layers = _with_common_choices([_layer_space(each, wanted[each.name], spec, table) for each in network.layers])
    space = SearchSpace(layers, rest_us, spec.max_patterns, spec.share)
    if not space.patterns:
        patterns = sorted({str(choice.pattern) for choices in wanted.values() for choice in choices})
        raise LatencyTableError(
            f"the latency table must cover some allowed pattern of some layer, but it holds only dense times "
            f"(wanted: {', '.join(patterns)}); run `pruneaug profile` with this job"
        )
    fixed = {pattern for layer in layers if layer.is_fixed for pattern in layer.patterns}
    if spec.max_patterns is not None and len(fixed) > spec.max_patterns:
        raise SpecError(
            f"space.max_patterns must allow the patterns of the fixed layers, but it is {spec.max_patterns} and they "
            f"are {', '.join(map(str, sorted(fixed, key=sort_key)))}; raise it"
        )
    return space


def keep_faster(
    assignment: Assignment, network: Network, table: LatencyTable, space: SearchSpace | None = None
) -> dict[str, LayerChoice]:
    """The assignment without the layers that it would not make faster than dense by more than the noise.

    Such a layer would lose accuracy for nothing. Layers that share their choice are kept together or not at all. Layers
    that the space fixes are kept, and added if they are missing.
    """
    fixed = {} if space is None else {layer.name: layer.choices[0] for layer in space.layers if layer.is_fixed}
    together = [] if space is None else [[member.layer for member in group] for group in space.sharing()]
    shared = {layer.name for group in together for layer in group}
    kept: dict[str, LayerChoice] = {}
    for group in [*together, *([layer] for layer in network.layers if layer.name not in shared)]:
        pruned = [(layer, c) for layer in group if not (c := assignment.get(layer.name, DENSE)).is_dense]
        gain_us = sum(
            layer.calls * (table.latency_us(layer.op, DENSE) - table.latency_us(layer.op, choice))
            for layer, choice in pruned
        )
        if gain_us > sum(layer.calls * table.noise_us(layer.op, choice) for layer, choice in pruned):
            kept |= {layer.name: choice for layer, choice in pruned}
    return {layer.name: kept[layer.name] for layer in network.layers if layer.name in kept} | fixed


def chosen(layer: LayerSpace, indices: Sequence[int]) -> LayerSpace:
    """The layer with some of its choices, in this order."""
    return replace(
        layer,
        choices=tuple(layer.choices[at] for at in indices),
        latencies_us=tuple(layer.latencies_us[at] for at in indices),
        noises_us=tuple(layer.noises_us[at] for at in indices),
        lost=None if layer.lost is None else tuple(layer.lost[at] for at in indices),
    )


def assigned_sparsity(assignment: Assignment, network: Network) -> float:
    """The fraction of the prunable layers' weights that the assignment makes zero."""
    sizes = {layer.name: math.prod(layer.op.matrix_shape) for layer in network.layers}
    return sum(size * assignment.get(name, DENSE).sparsity for name, size in sizes.items()) / sum(sizes.values())


def assignment_to_json(assignment: Assignment) -> dict[str, object]:
    return {name: choice.to_json() for name, choice in assignment.items()}


def assignment_from_json(value: Mapping[str, Mapping[str, object]]) -> dict[str, LayerChoice]:
    return {name: LayerChoice.from_json(choice) for name, choice in value.items()}


def _layer_space(layer: Layer, wanted: tuple[LayerChoice, ...], spec: SpaceSpec, table: LatencyTable) -> LayerSpace:
    covered = [choice for choice in wanted if _is_covered(layer, choice, table)]
    if is_fixed(layer, spec):
        if not covered:
            raise LatencyTableError(
                f"a fixed choice must be measured, but the latency table has no time of {wanted[0]} for layer "
                f"{layer.name!r}; run `pruneaug profile` with this job"
            )
        choices = tuple(covered)
    else:
        choices = (DENSE, *_refined(covered, spec.steps))
    return LayerSpace(
        layer,
        choices,
        tuple(layer.calls * table.latency_us(layer.op, choice) for choice in choices),
        tuple(layer.calls * table.noise_us(layer.op, choice) for choice in choices),
        group=group_of(layer, spec),
    )


def _with_common_choices(layers: Sequence[LayerSpace]) -> tuple[LayerSpace, ...]:
    """The layers, those of a named group with the choices that all of the group have."""
    common: dict[str, set[LayerChoice]] = {}
    for layer in layers:
        if layer.group is not None:
            common[layer.group] = common.get(layer.group, set(layer.choices)) & set(layer.choices)
    for group, choices in common.items():
        if all(choice.is_dense for choice in choices):
            members = ", ".join(repr(layer.name) for layer in layers if layer.group == group)
            raise SpecError(
                f"space.layers: the layers of a group must have a choice beside dense in common, but those of "
                f"{group!r} have none: {members}; give them patterns that fit and were measured for all of them, or "
                "other groups"
            )
    return tuple(
        layer
        if layer.group is None
        else chosen(layer, [at for at, choice in enumerate(layer.choices) if choice in common[layer.group]])
        for layer in layers
    )


def _refined(choices: list[LayerChoice], steps: int) -> list[LayerChoice]:
    """The choices, and between neighbouring sparsities of one pattern `steps` - 1 more."""
    refined: list[LayerChoice] = []
    for choice in choices:
        if refined and refined[-1].pattern == choice.pattern:
            low, gap = refined[-1].sparsity, choice.sparsity - refined[-1].sparsity
            between = [round(low + gap * step / steps, 9) for step in range(1, steps)]
            refined += [LayerChoice(choice.pattern, sparsity) for sparsity in between]
        refined.append(choice)
    return refined


def _is_covered(layer: Layer, choice: LayerChoice, table: LatencyTable) -> bool:
    grid = table.grid(layer.op, choice.pattern)
    return bool(grid) and min(grid) <= choice.sparsity <= max(grid)
