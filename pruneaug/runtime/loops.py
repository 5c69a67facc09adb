"""A schedule for the loops that TVM generates: threads over the outer loops, vectors along the innermost.

It is no match for the kernels of `pruneaug.kernels`, but some ten times better than plain loops, for any operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, sym, tirx
from tvm.s_tir.dlight.analysis import SBlockInfo, normalize_prim_func

_SMALLEST_PARALLEL = 1 << 14  # operations; waking the threads costs about as much
_LONGEST_TILE = 512  # values that a thread accumulates at once; 2 KiB
_SHORTEST_VECTOR = 4
_MOST_VECTORS = 8  # side by side in a tile
_MOST_ROWS = 4
_MOST_REGISTERS = 16  # of a tile


def schedule_loops(function: tirx.PrimFunc, lanes: int, threads: int) -> tirx.PrimFunc:
    """The function with a schedule for `threads` threads and vectors of `lanes` float32 values.

    A function that has none, because its loops are no canonical ones or a transformation is refused, is returned as it
    is.
    """
    function = _without_scopes(function)
    try:
        schedule = s_tir.Schedule(function)
        blocks = normalize_prim_func(schedule)
        if blocks is None or not all(_is_plain(block) for block in blocks):
            return function
        _inline(schedule, blocks)
        for block in normalize_prim_func(schedule):
            schedule = _schedule_block(schedule, block, lanes, threads)
        return schedule.mod["main"].with_attr(dict(function.attrs))
    except Exception:  # correct and slow; TVM documents no exceptions
        return function


def _without_scopes(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function without the marks that TVM's own generators leave, and its own compiler warns about."""

    def unmarked(statement: tirx.AttrStmt) -> tirx.Stmt:
        return statement.body if statement.attr_key == "pragma_scope" else statement

    body = tvm_ffi.structural_map(function.body, (tirx.AttrStmt, unmarked), order="post")
    return function if body.same_as(function.body) else function.with_body(body)


def _is_plain(block: SBlockInfo) -> bool:
    return all(iterator.kind in "SR" and isinstance(iterator.dom, int) for iterator in block.iters)


# Inlining


def _inline(schedule: s_tir.Schedule, blocks: list[SBlockInfo]) -> None:
    """Inline what is computed value by value into what reads it, where nothing costly is computed twice."""
    for block in blocks:
        if not block.is_injective():
            continue
        consumers = [schedule.get(consumer) for consumer in schedule.get_consumers(block.block_rv)]
        if not consumers:
            continue
        size = math.prod(block.dom())
        once = all(math.prod(int(it.dom.extent) for it in consumer.iter_vars) <= size for consumer in consumers)
        if once and (len(consumers) == 1 or not _calls(schedule.get(block.block_rv).body)):
            try:
                schedule.compute_inline(block.block_rv)
            except tvm.error.InternalError:
                continue  # then it stays a loop of its own


def _calls(body: tirx.Stmt) -> list[Any]:
    """The calls of functions in a statement, conditions included."""
    found: list[Any] = []
    tvm_ffi.structural_walk(body, (tvm.ir.Call, found.append))
    return found


def _conditions(body: tirx.Stmt) -> list[Any]:
    return [call.args[0] for call in _calls(body) if call.op.name == "tirx.if_then_else"]


# One block


def _schedule_block(schedule: s_tir.Schedule, block: SBlockInfo, lanes: int, threads: int) -> s_tir.Schedule:
    """Schedule a block and its loops; the first of the ways that TVM accepts, if only to leave it as it is."""
    ways: list[Callable[[s_tir.Schedule, SBlockInfo, int, int], None]]
    if block.is_injective():
        ways = [_spatial]
    elif _runs_along(schedule, block, _last_written(schedule, block)):
        ways = [_tiled, _rows]
    else:
        ways = [_dot, _rows]
    for way in ways:
        attempt = schedule.copy()
        try:
            way(attempt, block, lanes, threads)
            return attempt
        except Exception:
            continue
    return schedule


def _spatial(schedule: s_tir.Schedule, block: SBlockInfo, lanes: int, threads: int) -> None:
    loops = schedule.get_loops(block.block_rv)
    extents = [int(it.dom) for it in block.iters]
    if len(loops) == 1 and extents[0] % threads == 0:
        loops, extents = schedule.split(loops[0], [threads, None]), [threads, extents[0] // threads]
    vector = math.gcd(extents[-1], lanes)
    var = block.iters[-1].var
    if (
        vector >= _SHORTEST_VECTOR
        and _runs_along(schedule, block, var)
        and not any(_uses(condition, var) for condition in _conditions(schedule.get(block.block_rv).body))
    ):
        *_, lane = schedule.split(loops[-1], [None, vector])
        schedule.vectorize(lane)
    # Other innermost loops are left to LLVM, which vectorises what it can.
    _parallel(schedule, block, _prefix(loops[:-1], extents, threads))


def _rows(schedule: s_tir.Schedule, block: SBlockInfo, lanes: int, threads: int) -> None:
    """A reduction over plain loops."""
    loops = _by_kind(schedule, block)
    schedule.reorder(*loops["S"], *loops["R"])
    _parallel(schedule, block, _prefix(loops["S"], [int(it.dom) for it in block.iters if it.kind == "S"], threads))


def _prefix(loops: list[Any], extents: list[int], threads: int) -> list[Any]:
    """The outermost loops, as few as are enough for the threads: fused loops compute their indices by division."""
    for index in range(1, len(loops)):
        if math.prod(extents[:index]) >= 8 * threads:
            return loops[:index]
    return loops


def _tiled(schedule: s_tir.Schedule, block: SBlockInfo, lanes: int, threads: int) -> None:
    """A reduction whose last output dimension runs along vectors of the inputs, as in a matrix product.

    A thread accumulates a tile of rows x columns in registers, or in the cache where no vector divides the columns.
    """
    last = _last_written(schedule, block)
    spatial = [it for it in block.iters if it.kind == "S"]
    (column,) = [index for index, it in enumerate(spatial) if it.var.same_as(last)]
    columns = int(spatial[column].dom)
    vector = math.gcd(columns, lanes)
    is_vector = vector >= _SHORTEST_VECTOR
    row = _shared_row(schedule, block, last) if is_vector else None
    rows, vectors = max(
        (
            (rows, vectors)
            for rows in _divisors(1 if row is None else int(spatial[row].dom), _MOST_ROWS)
            for vectors in _divisors(columns // vector, _MOST_VECTORS)
            if rows * vectors <= _MOST_REGISTERS
        ),
        key=lambda tile: tile[0] * tile[1] / (tile[0] + tile[1]),  # products for every value that is loaded
    )
    tile = vectors * vector if is_vector else _divisors(columns, _LONGEST_TILE)[0]

    loops = _by_kind(schedule, block)
    outer, inner = [], []
    for index, loop in enumerate(loops["S"]):
        if index == column:
            outer_column, inner_column = schedule.split(loop, [None, tile])
        elif index == row:
            outer_row, inner_row = schedule.split(loop, [None, rows])
            outer.append(outer_row)
            inner.append(inner_row)
        else:
            outer.append(loop)
    outer.append(outer_column)
    schedule.reorder(*outer, *loops["R"], *inner, inner_column)
    result = schedule.cache_write(block.block_rv, 0, "local")
    fused = _parallel(schedule, block, outer)
    schedule.reverse_compute_at(result, fused)
    if is_vector:
        for tiles in (inner_column, schedule.get_loops(result)[-1]):
            along, lane = schedule.split(tiles, [None, vector])
            schedule.unroll(along)
            schedule.vectorize(lane)
        for loop in inner:
            schedule.unroll(loop)
    schedule.decompose_reduction(block.block_rv, loops["R"][0])


def _divisors(number: int, most: int) -> list[int]:
    """Those up to `most`, from the largest to 1."""
    return [n for n in range(min(number, most), 0, -1) if number % n == 0]


def _dot(schedule: s_tir.Schedule, block: SBlockInfo, lanes: int, threads: int) -> None:
    """A reduction along contiguous values of the inputs: partial results in the lanes of a vector, then their sum."""
    loops = _by_kind(schedule, block)
    reduced = [it for it in block.iters if it.kind == "R"]
    schedule.reorder(*loops["S"], *loops["R"])
    if _are_last(schedule, block, reduced):
        last, extent = schedule.fuse(*loops["R"]), math.prod(int(it.dom) for it in reduced)
    else:
        last = loops["R"][-1]
        extent = int(reduced[-1].dom)
        if not _runs_along(schedule, block, reduced[-1].var, written=False):
            raise ValueError("the values are not contiguous")
    if extent % lanes:
        raise ValueError("vectors do not divide the values")
    _, lane = schedule.split(last, [None, lanes])
    partial = schedule.rfactor(lane, 0)
    fused = _parallel(schedule, block, schedule.get_loops(block.block_rv)[: len(loops["S"])])
    if fused is not None:
        schedule.compute_at(partial, fused)
    schedule.set_scope(partial, 0, "local")
    inner = schedule.get_loops(partial)[1 if fused is not None else len(loops["S"]) :]
    vector = inner[0]
    schedule.reorder(*inner[1:], vector)
    schedule.vectorize(vector)
    schedule.decompose_reduction(partial, inner[1])


def _are_last(schedule: s_tir.Schedule, block: SBlockInfo, reduced: list[Any]) -> bool:
    """Whether all inputs' last dimensions are the reduced ones, in their order and whole."""
    for access in schedule.get(block.block_rv).reads:
        tail = list(access.region)[-len(reduced) :]
        sizes = list(access.source.shape)[-len(reduced) :]
        if len(tail) < len(reduced) or not all(
            index.min.same_as(it.var) and int(size) == int(it.dom) for index, size, it in zip(tail, sizes, reduced)
        ):
            return False
    return True


def _parallel(schedule: s_tir.Schedule, block: SBlockInfo, loops: list[Any]) -> Any:
    """Fuse outer loops into one, and share it among the threads if there is enough to do. None if there is no loop."""
    if not loops:
        return None
    fused = schedule.fuse(*loops)
    if math.prod(block.dom()) >= _SMALLEST_PARALLEL and int(schedule.get(fused).extent) > 1:
        schedule.parallel(fused)
    return fused


def _by_kind(schedule: s_tir.Schedule, block: SBlockInfo) -> dict[str, list[Any]]:
    loops = schedule.get_loops(block.block_rv)
    return {kind: [loop for loop, it in zip(loops, block.iters) if it.kind == kind] for kind in "SR"}


def _last_written(schedule: s_tir.Schedule, block: SBlockInfo) -> tirx.Var | None:
    """The iterator that is the last index of what the block writes."""
    region = schedule.get(block.block_rv).writes[0].region
    return region[-1].min if len(region) and isinstance(region[-1].min, tirx.Var) else None


def _runs_along(schedule: s_tir.Schedule, block: SBlockInfo, var: Any, *, written: bool = True) -> bool:
    """Whether neighbours along `var` are neighbours in memory, or one value, in all that the block reads and writes."""
    if var is None:
        return False
    body = schedule.get(block.block_rv)
    return all(_step(region, var) in (0, 1) for region in [*body.reads, *(body.writes if written else [])])


def _step(access: Any, var: tirx.Var) -> int | None:
    """How far apart neighbours along `var` are in memory; None where that varies or is more than the last dimension."""
    *outer, last = [index.min for index in access.region] or [tirx.IntImm("int64", 0)]
    if any(_uses(index, var) for index in outer):
        return None
    linear = sym.detect_linear_equation(last, [var])
    return int(linear[0]) if len(linear) and isinstance(linear[0], tirx.IntImm) else None


def _shared_row(schedule: s_tir.Schedule, block: SBlockInfo, column: tirx.Var) -> int | None:
    """Along which of the spatial iterators a tile reads the same vectors again; None if there is no such one."""
    reads = schedule.get(block.block_rv).reads
    vectors = [access for access in reads if _step(access, column) == 1]
    spatial = [it for it in block.iters if it.kind == "S"]
    for index in range(len(spatial) - 1, -1, -1):
        it = spatial[index]
        if not it.var.same_as(column) and not all(_reads(access, it.var) for access in vectors):
            return index
    return None


def _reads(access: Any, var: tirx.Var) -> bool:
    return any(_uses(index.min, var) for index in access.region)


def _uses(expression: Any, var: tirx.Var) -> bool:
    return any(found.same_as(var) for found in tirx.analysis.undefined_vars(expression, []))
