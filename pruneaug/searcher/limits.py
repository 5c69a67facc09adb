"""Limits on whole assignments, for strategies that choose layer by layer."""

from __future__ import annotations

from collections import Counter

from pruneaug.searcher.space import LayerSpace, SearchSpace
from pruneaug.sparsity.patterns import DENSE, Assignment, LayerChoice, Pattern, sort_key


def settle(space: SearchSpace, assignment: Assignment) -> dict[str, LayerChoice]:
    """The assignment, changed where the space demands it.

    Fixed layers are what they must be; layers that share their choice take that of the first of them. With
    `max_patterns` the patterns that most multiplications use stay, and layers of other patterns take the one of these
    whose blocks are nearest in size, at their sparsity; dense if they may have none of them.
    """
    chosen = {layer.name: assignment.get(layer.name, DENSE) for layer in space.layers}
    chosen |= {layer.name: chosen[group[0].name] for group in space.sharing() for layer in group}
    chosen |= {layer.name: layer.choices[0] for layer in space.layers if layer.is_fixed}
    kept = _kept_patterns(space, chosen)
    return {layer.name: _moved(layer, chosen[layer.name], kept) for layer in space.layers}


def listed_us(space: SearchSpace, assignment: Assignment) -> float:
    """The latency by the listed time of each choice; `settle` may move one off the list, which counts as dense."""
    total = space.rest_us
    for layer in space.layers:
        choice = assignment[layer.name]
        total += layer.latencies_us[layer.choices.index(choice) if choice in layer.choices else 0]
    return total


def _kept_patterns(space: SearchSpace, assignment: Assignment) -> list[Pattern]:
    used: Counter[Pattern] = Counter()
    fixed = {pattern for layer in space.layers if layer.is_fixed for pattern in layer.patterns}
    for layer in space.layers:
        pattern = assignment[layer.name].pattern
        if pattern is not None:
            used[pattern] += layer.layer.op.macs * layer.layer.calls
    by_use = sorted(used, key=lambda pattern: (pattern not in fixed, -used[pattern], sort_key(pattern)))
    return by_use[: space.max_patterns]


def _moved(layer: LayerSpace, choice: LayerChoice, kept: list[Pattern]) -> LayerChoice:
    pattern = choice.pattern
    if pattern is None or pattern in kept:
        return choice
    size = pattern.rows * pattern.cols
    allowed = [other for other in kept if other in layer.patterns]
    if not allowed:
        return DENSE
    nearest = min(allowed, key=lambda other: (max(size, s := other.rows * other.cols) / min(size, s), sort_key(other)))
    return layer.nearest(nearest, choice.sparsity)
