"""What to measure: the cells of a latency table that have no time yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruneaug.latency.records import LatencyRecord
from pruneaug.latency.store import LatencyStore
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.network.ops import Op, can_have, parse_op
from pruneaug.platforms.platform import Platform
from pruneaug.sparsity.patterns import parse_pattern

DENSE_LIBRARIES = (RUNTIME_LIBRARY, "torch")  # the dense baseline is the best of several


@dataclass(frozen=True, slots=True)
class Cell:
    """One time to measure: it becomes exactly one record."""

    op: Op
    pattern: str
    sparsity: float
    library: str = RUNTIME_LIBRARY


@dataclass(frozen=True, slots=True)
class Task:
    """Cells of one op, measured together, and the measurer's keyword arguments."""

    op: Op
    cells: tuple[Cell, ...]
    platform: Platform
    options: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        cells = [{"pattern": cell.pattern, "sparsity": cell.sparsity, "library": cell.library} for cell in self.cells]
        return {"op": self.op.key, "cells": cells, "platform": self.platform.to_json(), "options": dict(self.options)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Task:
        op = parse_op(value["op"])
        cells = (Cell(op, cell["pattern"], cell["sparsity"], cell["library"]) for cell in value["cells"])
        return cls(op, tuple(cells), Platform.from_json(value["platform"]), value["options"])


def cell_of(record: LatencyRecord) -> Cell:
    """The cell that this record times."""
    return Cell(record.op, record.pattern, record.sparsity, record.library)


def wanted(
    ops: Iterable[Op],
    patterns: Sequence[str],
    sparsities: Sequence[float],
    libraries: Sequence[str] = DENSE_LIBRARIES,
    dense_only: Collection[Op] = (),
) -> tuple[Cell, ...]:
    """Every cell of these ops, grouped by op, first dense by each library.

    Patterns that an op cannot have (`can_have`) have none, N:M has one, and the ops of `dense_only` have no patterns.
    """
    cells: list[Cell] = []
    for op in dict.fromkeys(ops):
        cells += [Cell(op, "dense", 0.0, library) for library in libraries]
        for pattern in dict.fromkeys(() if op in dense_only else patterns):
            block = parse_pattern(pattern)
            if block is not None and can_have(op, block):
                cells += [Cell(op, str(block), sparsity) for sparsity in block.sparsities(sparsities)]
    return tuple(cells)


def plan(
    ops: Iterable[Op],
    patterns: Sequence[str],
    sparsities: Sequence[float],
    store: LatencyStore,
    libraries: Sequence[str] = DENSE_LIBRARIES,
    dense_only: Collection[Op] = (),
) -> tuple[Cell, ...]:
    """The wanted cells that have no time in the store; a cell that only has an error is planned again."""
    timed = {cell_of(record) for record in store.load() if record.error is None}
    return tuple(cell for cell in wanted(ops, patterns, sparsities, libraries, dense_only) if cell not in timed)
