"""From which sparsity on a pattern is faster than dense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from pruneaug.latency.interpolation import monotone_curve
from pruneaug.latency.records import LatencyRecord
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.network.ops import Op


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The median over `ops` ops of the sparsity from which a pattern is faster than the op's fastest dense kernel.

    `against_libraries` leaves pruneaug's own dense kernel out, `against_all` counts it too. None if half of the ops or
    more are not faster at any measured sparsity, or if no op has a dense time.
    """

    ops: int
    against_libraries: float | None
    against_all: float | None


def break_even(records: Iterable[LatencyRecord]) -> dict[str, BreakEven]:
    """Of each pattern that has times. A record with an error says nothing: it is left out.

    Times are interpolated between measured sparsities, and nothing is extrapolated: where a pattern is faster at the
    lowest measured one already, that one counts.
    """
    sparse: dict[str, dict[Op, dict[float, float]]] = {}
    libraries: dict[Op, float] = {}
    everything: dict[Op, float] = {}
    for record in records:
        if record.error is not None:
            continue
        if record.pattern != "dense":
            by_op = sparse.setdefault(record.pattern, {})
            by_op.setdefault(record.op, {})[record.sparsity] = record.latency_us
            continue
        for fastest in (everything,) if record.library == RUNTIME_LIBRARY else (everything, libraries):
            fastest[record.op] = min(record.latency_us, fastest.get(record.op, math.inf))
    return {
        pattern: BreakEven(len(times), _median(times, libraries), _median(times, everything))
        for pattern, times in sparse.items()
    }


def _median(times: Mapping[Op, Mapping[float, float]], dense: Mapping[Op, float]) -> float | None:
    found = [_crossing(points, dense[op]) for op, points in times.items() if op in dense]
    middle = median(found) if found else math.inf
    return middle if math.isfinite(middle) else None


def _crossing(points: Mapping[float, float], dense_us: float) -> float:
    """The sparsity at which the times fall below `dense_us`; infinite if they never do."""
    from scipy.optimize import brentq  # imported here, as in `interpolation`

    sparsities = sorted(points)
    curve = monotone_curve(sparsities, [points[sparsity] for sparsity in sparsities])
    low, high = sparsities[0], sparsities[-1]
    if curve(low) < dense_us:
        return low
    if curve(high) >= dense_us:
        return math.inf
    return float(brentq(lambda sparsity: curve(sparsity) - dense_us, low, high))
