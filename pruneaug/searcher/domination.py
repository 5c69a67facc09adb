"""Domination: the choices of a layer that some budget could call for.

A choice is dominated if another is as fast and loses no more. Times are measured, so a choice must be faster by more
than its noise to count as faster: of those nearer than that, the one that loses less stays, and of equal losses the
one of lower sparsity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pruneaug.searcher.space import LayerSpace, SearchSpace, chosen


def front(layer: LayerSpace) -> tuple[int, ...]:
    """The indices of a layer's choices that are not dominated, by falling latency; the first choice leads.

    What a choice loses is its saliency, or its sparsity if there are no scores.
    """
    losses = _losses(layer)
    order = sorted(range(len(layer.choices)), key=lambda at: (losses[at], layer.choices[at].sparsity, at))
    kept = [order[0]]
    for at in order[1:]:
        if layer.latencies_us[at] < layer.latencies_us[kept[-1]] - layer.noises_us[at]:
            if len(kept) > 1 and losses[kept[-1]] == losses[at]:
                kept.pop()
            kept.append(at)
    return tuple(kept)


def hull(layer: LayerSpace) -> tuple[int, ...]:
    """The part of `front` on its lower convex hull: each step gains less latency per loss than the one before."""
    losses = _losses(layer)
    kept: list[int] = []
    for at in front(layer):
        while len(kept) > 1 and not _turns(layer.latencies_us, losses, kept[-2], kept[-1], at):
            kept.pop()
        kept.append(at)
    return tuple(kept)


def worthwhile(space: SearchSpace) -> SearchSpace:
    """The space without the choices that are not faster than dense by more than their noise.

    Of layers that share their choice, all together.
    """
    groups = {layer.name: group for group in space.sharing() for layer in group}

    def indices(layer: LayerSpace) -> list[int]:
        group = groups.get(layer.name, (layer,))
        times, noises = (np.sum(each, axis=0) for each in zip(*((g.latencies_us, g.noises_us) for g in group)))
        return [0, *(at for at in range(1, len(times)) if times[at] < times[0] - noises[at])]

    return replace(space, layers=tuple(chosen(layer, indices(layer)) for layer in space.layers))


def undominated(space: SearchSpace) -> SearchSpace:
    """The space without dominated choices."""
    return replace(space, layers=tuple(chosen(layer, front(layer)) for layer in space.layers))


def _losses(layer: LayerSpace) -> npt.NDArray[np.float64]:
    return np.array([choice.sparsity for choice in layer.choices] if layer.lost is None else layer.lost)


def _turns(latencies_us: Sequence[float], losses: npt.NDArray[np.float64], a: int, b: int, c: int) -> bool:
    """Whether b lies below the line from a to c: latency falls faster from a to b than from b to c."""
    first = (latencies_us[a] - latencies_us[b]) * (losses[c] - losses[b])
    return bool(first > (latencies_us[b] - latencies_us[c]) * (losses[b] - losses[a]))
