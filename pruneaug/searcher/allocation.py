"""Allocation: the choice per layer that loses least within limits, exactly.

A multiple-choice knapsack as a mixed-integer linear programme (HiGHS, by `scipy.optimize.milp`): one binary variable
for each layer's choice, one row for each layer ("exactly one choice") and for each limit. With `max_kinds`, one binary
variable z for each kind (pattern), rows "the choices of kind k in layer l sum to at most z_k", and one row "all z sum
to at most max_kinds". Layers that share their choice are one layer whose values and weights are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pruneaug.errors import SpecError
from pruneaug.searcher.choosing import Array, solve_choices

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_SLACK = 1e-9
"""What a limit may be exceeded by, as a fraction of it: sums of floats are rounded."""
_BOUND = 1e3
"""What limits are scaled to: the solver takes 1e-6 over a bound for within it."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The weights of the choices, an array [choices] per layer, and `offset` may sum to at most `most`, in `unit`."""

    name: str
    weights: Sequence[Array]
    most: float
    unit: str = ""
    offset: float = 0.0

    @property
    def left(self) -> float:
        """What the layers may sum to."""
        return self.most - self.offset


def allocate(
    values: Sequence[Array],
    limits: Sequence[Limit],
    *,
    kinds: Sequence[Sequence[int]] | None = None,
    max_kinds: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> tuple[int, ...]:
    """The index of each layer's choice, of least sum of `values` (an array [choices] per layer) within all limits.

    Of equally good ones, one of the least first limit. `kinds` gives each choice a kind from 0 on, or -1 for none
    (dense), of which at most `max_kinds` may be used. Layers in one of `groups` get the same index.

    Raises SpecError for limits that cannot be met: it names the limit, its value and the least that can be reached.
    """
    problem = _Problem(tuple(values), tuple(limits), kinds, max_kinds).merged(groups, len(values))
    chosen = problem.solve()
    if chosen is None:
        raise SpecError(problem.why_infeasible())
    return tuple(chosen[place] for place in _places(groups, len(values)))


@dataclass(frozen=True, slots=True)
class _Problem:
    values: tuple[Array, ...]
    limits: tuple[Limit, ...]
    kinds: Sequence[Sequence[int]] | None
    max_kinds: int | None

    def merged(self, groups: Sequence[Sequence[int]] | None, layers: int) -> _Problem:
        """The problem with one layer for each group, and limits as fractions of their bounds."""
        places = _places(groups, layers)
        firsts = [places.index(place) for place in range(max(places) + 1)]

        def summed(arrays: Sequence[Array]) -> tuple[Array, ...]:
            sums: list[Any] = [0.0] * len(firsts)
            for place, array in zip(places, arrays, strict=True):
                sums[place] = sums[place] + np.asarray(array, dtype=float)
            return tuple(sums)

        limits = tuple(replace(limit, weights=summed(limit.weights)) for limit in self.limits)
        kinds = None if self.kinds is None else [self.kinds[first] for first in firsts]
        return _Problem(summed(self.values), limits, kinds, self.max_kinds)

    def solve(self) -> list[int] | None:
        """The index of the best choice per layer, or None if there is none within the limits."""
        if not self.limits and self.max_kinds is None:
            return [int(values.argmin()) for values in self.values]
        kept = [self._undominated(layer) for layer in range(len(self.values))]
        cost = np.concatenate([values[indices] - values.min() for values, indices in zip(self.values, kept)])
        matrix, most, indicators = self._rows(kept)
        chosen = solve_choices(cost, [len(indices) for indices in kept], matrix, most, indicators)
        return None if chosen is None else [int(indices[at]) for indices, at in zip(kept, chosen)]

    def _undominated(self, layer: int) -> npt.NDArray[np.int64]:
        """The choices that no other of the same kind equals or beats in value and in all weights; a tie keeps one."""
        columns = [self.values[layer], *(limit.weights[layer] for limit in self.limits)]
        table, kinds = np.stack(columns, axis=1), self._kinds_of(layer)  # [choices, 1 + limits], [choices]
        better = (table[:, None] <= table[None]).all(axis=2)  # [choices, choices]: the first is as good as the second
        first = np.arange(len(kinds))[:, None] < np.arange(len(kinds))
        serves = (kinds[:, None] == kinds) | (kinds[:, None] < 0)  # dense serves for any kind
        beats = better & serves & (~better.T | first | (kinds[:, None] != kinds))
        return np.flatnonzero(~beats.any(axis=0))

    def _kinds_of(self, layer: int) -> npt.NDArray[np.int64]:
        if self.kinds is None or self.max_kinds is None:
            return np.full(len(self.values[layer]), -1)
        return np.asarray(self.kinds[layer])

    def _rows(self, kept: list[npt.NDArray[np.int64]]) -> tuple[csr_array, Array, int]:
        """Rows [rows, variables], what each may sum to [rows], and how many indicators follow the choices."""
        from scipy.sparse import coo_array, csr_array, vstack

        sizes = [(abs(limit.left) or 1.0) / _BOUND for limit in self.limits]
        weights = [
            np.concatenate([weights[indices] for weights, indices in zip(limit.weights, kept)]) / size
            for limit, size in zip(self.limits, sizes)
        ]
        choices = sum(len(indices) for indices in kept)
        bounds = [limit.left / size + _SLACK * _BOUND for limit, size in zip(self.limits, sizes)]
        kinds = np.concatenate([self._kinds_of(layer)[indices] for layer, indices in enumerate(kept)])
        layers = np.repeat(np.arange(len(kept)), [len(indices) for indices in kept])
        used, place = np.unique(kinds[kinds >= 0], return_inverse=True)
        limit_rows = csr_array(np.reshape(weights, (len(weights), choices)))
        limit_rows.resize((len(weights), choices + len(used)))
        if not len(used) or self.max_kinds is None:
            return limit_rows, np.array(bounds), 0
        pairs, pair = np.unique(layers[kinds >= 0] * len(used) + place, return_inverse=True)
        rows = np.concatenate([pair, np.arange(len(pairs)), np.full(len(used), len(pairs))])
        columns = np.concatenate(
            [np.flatnonzero(kinds >= 0), choices + pairs % len(used), choices + np.arange(len(used))]
        )
        entries = np.concatenate([np.ones(len(pair)), np.full(len(pairs), -1.0), np.ones(len(used))])
        kind_rows = coo_array((entries, (rows, columns)), shape=(len(pairs) + 1, choices + len(used)))
        most = np.concatenate([bounds, np.zeros(len(pairs)), [self.max_kinds]])
        return csr_array(vstack([limit_rows, kind_rows])), most, len(used)

    def why_infeasible(self) -> str:
        """Which limit cannot be met, alone or beside those before it."""
        for count, limit in enumerate(self.limits):
            before = self.limits[:count]
            least = replace(self, values=tuple(limit.weights), limits=before).solve()
            assert least is not None
            reachable = limit.offset + sum(float(weights[at]) for weights, at in zip(limit.weights, least))
            if reachable > limit.most * (1 + _SLACK) + _SLACK:
                beside = f" beside {', '.join(other.name for other in before)}" if before else ""
                kinds = f" and at most {self.max_kinds} patterns" if self.max_kinds is not None else ""
                return (
                    f"the limit of {limit.name} must be at least what can be reached{beside}{kinds}, "
                    f"{reachable:.6g}{limit.unit}, but got {limit.most:.6g}{limit.unit}; raise it, or allow sparser "
                    "choices"
                )
        return "the limits cannot be met together; raise one of them"


def _places(groups: Sequence[Sequence[int]] | None, layers: int) -> list[int]:
    """The group of each layer, groups numbered by their first layer."""
    of_layer = {layer: group for group, members in enumerate(groups or ()) for layer in members}
    keys = [of_layer.get(layer, -1 - layer) for layer in range(layers)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]
