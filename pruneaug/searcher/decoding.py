"""From a budget to an assignment: the allocation over a search space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pruneaug.searcher.allocation import Limit, allocate
from pruneaug.searcher.choosing import Array
from pruneaug.searcher.space import LayerSpace, SearchSpace
from pruneaug.sparsity.patterns import LayerChoice


def layer_losses(space: SearchSpace) -> list[Array]:
    """What each choice loses, an array [choices] per layer; its sparsity times its weights if there are no scores."""
    if space.is_scored:
        return [np.array(layer.lost) for layer in space.layers]
    return [_weights(layer) * np.array([choice.sparsity for choice in layer.choices]) for layer in space.layers]


def latency_limit(space: SearchSpace, most_us: float) -> Limit:
    """The whole network takes at most `most_us`."""
    # What no choice changes counts for the limit, but not for the layers' sum.
    weights = [np.array(layer.latencies_us) for layer in space.layers]
    return Limit("latency", weights, most_us, " us", offset=space.rest_us)


def parameter_limit(space: SearchSpace, most: float) -> Limit:
    """At most so many weights of the prunable layers are kept (times 4 bytes: their size as float32 values)."""
    return Limit("parameters", _kept(space, [_weights(layer) for layer in space.layers]), most)


def operation_limit(space: SearchSpace, most: float) -> Limit:
    """The prunable layers make at most so many multiply-accumulates."""
    macs = [float(layer.layer.op.macs * layer.layer.calls) for layer in space.layers]
    return Limit("operations", _kept(space, macs), most)


def least_lost(space: SearchSpace, limits: Sequence[Limit], losses: Sequence[Array]) -> dict[str, LayerChoice]:
    """The assignment of least sum of `losses` within the limits, exactly. Raises SpecError if there is none."""
    return _decode(space, losses, limits)


def fastest(space: SearchSpace, limits: Sequence[Limit] = ()) -> dict[str, LayerChoice]:
    """The assignment of least latency within the limits, exactly. Raises SpecError if there is none."""
    return _decode(space, latency_limit(space, np.inf).weights, limits)


def least_us(space: SearchSpace, limits: Sequence[Limit] = ()) -> float:
    """The latency of `fastest`, in microseconds. Raises SpecError if the limits cannot be met."""
    return latency_us(space, fastest(space, limits))


def loss_limit(losses: Sequence[Array], most: float) -> Limit:
    """The choices lose at most so much together: the dual of `least_lost` is `fastest` within this."""
    return Limit("lost saliency", losses, most)


def latency_us(space: SearchSpace, assignment: Mapping[str, LayerChoice]) -> float:
    """Of an assignment of listed choices."""
    times = (layer.latencies_us[layer.choices.index(assignment[layer.name])] for layer in space.layers)
    return space.rest_us + sum(times)


def _decode(space: SearchSpace, values: Sequence[Array], limits: Sequence[Limit]) -> dict[str, LayerChoice]:
    numbers = {pattern: number for number, pattern in enumerate(space.patterns)}
    kinds = [
        [-1 if each.pattern is None else numbers[each.pattern] for each in layer.choices] for layer in space.layers
    ]
    indices = allocate(values, limits, kinds=kinds, max_kinds=space.max_patterns, groups=_groups(space))
    return {layer.name: layer.choices[at] for layer, at in zip(space.layers, indices, strict=True)}


def _groups(space: SearchSpace) -> list[list[int]]:
    place = {layer.name: number for number, layer in enumerate(space.layers)}
    return [[place[layer.name] for layer in group] for group in space.sharing()]


def _weights(layer: LayerSpace) -> float:
    rows, cols = layer.layer.op.matrix_shape
    return float(rows * cols)


def _kept(space: SearchSpace, whole: Sequence[float]) -> list[Array]:
    return [
        size * np.array([1 - choice.sparsity for choice in layer.choices])
        for size, layer in zip(whole, space.layers, strict=True)
    ]
