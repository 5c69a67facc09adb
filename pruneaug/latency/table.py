"""The latency table: measured times, and the interpolation over sparsity between them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from pruneaug.errors import LatencyTableError
from pruneaug.latency.interpolation import monotone_curve
from pruneaug.latency.records import LatencyRecord
from pruneaug.network.ops import Op
from pruneaug.sparsity.patterns import DENSE, LayerChoice, Pattern, parse_pattern, sort_key

_SAME_SPARSITY = 1e-6

RUNTIME_LIBRARY = "tvm"
"""The library that a compiled network runs on. Libraries are not mixed: the threads of one keep the other's waiting.

On a GPU they are: a dense layer of this library may be PyTorch's there, as its record's variant says."""

CellKey = tuple[Op, str, float, str]
"""(op, pattern, sparsity, library)."""


class LatencyTable:
    """Times of (op, pattern, sparsity) on one platform: exact in op and pattern, interpolated in sparsity.

    The times are those of `RUNTIME_LIBRARY`; those of other libraries only count for `dense`, the honest baseline. The
    latest record of a cell holds, and records with an error hold no time.
    """

    def __init__(self, records: Iterable[LatencyRecord]) -> None:
        self._latest = _latest_times(records)
        self._points: dict[tuple[Op, str], dict[float, LatencyRecord]] = {}
        self._dense: dict[Op, LatencyRecord] = {}
        for record in self._latest.values():
            if record.library == RUNTIME_LIBRARY:
                self._points.setdefault((record.op, record.pattern), {})[record.sparsity] = record
            best = self._dense.get(record.op)
            if record.pattern == "dense" and (best is None or record.latency_us < best.latency_us):
                self._dense[record.op] = record
        self._points = {key: dict(sorted(points.items())) for key, points in self._points.items()}
        self._curves: dict[tuple[Op, str], Callable[[float], float]] = {}

    def scaled(self, factor: Callable[[float], float]) -> LatencyTable:
        """The same table with every time multiplied by `factor` of its sparsity."""
        records = self._latest.values()
        factors = {sparsity: factor(sparsity) for sparsity in {record.sparsity for record in records}}
        return LatencyTable(_scaled(record, factors[record.sparsity]) for record in records)

    def latest(self) -> dict[CellKey, LatencyRecord]:
        """The record that holds for each cell that has a time."""
        return dict(self._latest)

    def ops(self) -> tuple[Op, ...]:
        """The ops that have any time, in the order of their records."""
        return tuple(dict.fromkeys(op for op, _ in self._points))

    def patterns(self, op: Op) -> tuple[Pattern, ...]:
        """The patterns, dense aside, that have any time for this op, sorted."""
        patterns = (parse_pattern(pattern) for known, pattern in self._points if known == op)
        return tuple(sorted((pattern for pattern in patterns if pattern is not None), key=sort_key))

    def grid(self, op: Op, pattern: Pattern | None) -> tuple[float, ...]:
        """The measured sparsities, ascending; empty if there are none."""
        return tuple(self._points.get((op, _text(pattern)), ()))

    def dense(self, op: Op) -> LatencyRecord:
        """The fastest dense record over all libraries. Raises LatencyTableError if there is none."""
        return self._dense.get(op) or self.record(op, DENSE)

    def latency_us(self, op: Op, choice: LayerChoice) -> float:
        """Time of the op with this choice.

        Raises LatencyTableError outside the measured range: nothing is extrapolated.
        """
        points = self._covering(op, choice)
        key = op, _text(choice.pattern)
        if key not in self._curves:
            self._curves[key] = monotone_curve(list(points), [record.latency_us for record in points.values()])
        return self._curves[key](choice.sparsity)

    def noise_us(self, op: Op, choice: LayerChoice) -> float:
        """Half the distance from the 10th to the 90th percentile, the larger of the two measured neighbours'.

        Choices whose times are closer than this are equal.
        """
        grid = list(points := self._covering(op, choice))
        index = bisect_left(grid, choice.sparsity)
        return max((points[at].p90_us - points[at].p10_us) / 2 for at in grid[max(0, index - 1) : index + 1])

    def record(self, op: Op, choice: LayerChoice) -> LatencyRecord:
        """The record at the measured sparsity nearest to the choice's (the lower of two equally near)."""
        points = self._covering(op, choice)
        return points[min(points, key=lambda at: (abs(at - choice.sparsity), at))]

    def missing(
        self, ops: Iterable[Op], patterns: Sequence[Pattern | None], sparsities: Sequence[float]
    ) -> tuple[tuple[Op, Pattern | None, float], ...]:
        """The (op, pattern, sparsity) without a time, dense ones at sparsity 0 included only if `patterns` has None."""
        return tuple(
            (op, pattern, sparsity)
            for op in dict.fromkeys(ops)
            for pattern in patterns
            for sparsity in ((0.0,) if pattern is None else sparsities)
            if sparsity not in self._points.get((op, _text(pattern)), ())
        )

    def _covering(self, op: Op, choice: LayerChoice) -> dict[float, LatencyRecord]:
        """The measured points whose range holds the choice's sparsity."""
        points = self._points.get((op, _text(choice.pattern)), {})
        if not points:
            known = sorted(pattern for measured, pattern in self._points if measured == op)
            there = f"has only {', '.join(known)} for this op" if known else "has nothing for this op"
            raise LatencyTableError(
                f"the latency table must have times of {_text(choice.pattern)} for {op.key}, but it {there}; "
                "run `pruneaug profile`"
            )
        low, high = min(points), max(points)
        if not low - _SAME_SPARSITY <= choice.sparsity <= high + _SAME_SPARSITY:
            raise LatencyTableError(
                f"sparsity must lie in the measured range [{low:g}, {high:g}] of {_text(choice.pattern)} for {op.key}, "
                f"but got {choice.sparsity:g}; add it to space.sparsities and run `pruneaug profile`"
            )
        return points


def _latest_times(records: Iterable[LatencyRecord]) -> dict[CellKey, LatencyRecord]:
    """The latest record of each cell that has a time; a later one in the sequence wins over an equally late one."""
    latest: dict[CellKey, LatencyRecord] = {}
    kinds = set()
    for record in records:
        kinds.add((record.dtype, record.threads))
        key = record.op, record.pattern, record.sparsity, record.library
        if record.error is None and (key not in latest or _time(record) >= _time(latest[key])):
            latest[key] = record
    if len(kinds) > 1:
        found = ", ".join(f"{dtype} with {threads} threads" for dtype, threads in sorted(kinds))
        raise LatencyTableError(
            f"all records of a latency table must have one dtype and one number of threads, but got {found}; "
            "keep them in separate folders"
        )
    return latest


def _scaled(record: LatencyRecord, factor: float) -> LatencyRecord:
    times = record.latency_us * factor, record.p10_us * factor, record.p90_us * factor
    return replace(record, latency_us=times[0], p10_us=times[1], p90_us=times[2])


def _time(record: LatencyRecord) -> datetime:
    return datetime.fromisoformat(record.measured_at)


def _text(pattern: Pattern | None) -> str:
    return "dense" if pattern is None else str(pattern)
