"""Measuring one op on this machine: every asked pattern and sparsity by our kernels, and dense by other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tvm.script import tirx as T

from pruneaug.errors import MeasurementError
from pruneaug.kernels.build import Builder, CpuTarget, memory
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.layers import Buffers
from pruneaug.kernels.variants import Variant
from pruneaug.kernels.vectors import prim_func
from pruneaug.latency.records import LatencyRecord, error_record
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.network.ops import Op
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.op_data import OpData
from pruneaug.profiler.op_peers import PEERS
from pruneaug.profiler.placement import place_threads
from pruneaug.profiler.plan import Cell
from pruneaug.profiler.precisions import compile_ahead, kernels_for
from pruneaug.profiler.probe import kernel_probe
from pruneaug.profiler.timing import interleaved_us
from pruneaug.sparsity.patterns import Block, parse_pattern

_MOST_VARIANTS = 3
_PEER_SLICE_S = 0.02  # the probe must wait for the library's threads to stop spinning
_ARGUMENTS = 11  # of a kernel's call
_LARGE_MATRIX = 50_000  # weights; masks of larger ones vary less than times do

Call = Callable[[], object]


@dataclass(slots=True)
class _Bench:
    """An op that is measured: the input that all its kernels read, the likeliest variants by the rows of a block and
    the sparsity, the fastest variant of each pattern at the sparsity that was measured last."""

    data: OpData
    buffers: Buffers = field(default_factory=Buffers)
    x: Any = None
    likeliest: dict[tuple[int, float], list[Variant]] = field(default_factory=dict)
    fastest: dict[Block | None, Variant] = field(default_factory=dict)


class Measurer:
    """Measures cells on the local CPU, in the dtype of the platform.

    Needs a process of its own: it sets the number of threads.
    """

    def __init__(self, platform: Platform, *, seeds: Sequence[int] = (0, 1), budget_s: float = 0.015) -> None:
        """`budget_s` is about the time that each cell's repeats take; `seeds` are those of its masks.

        Raises InputError for a dtype that has no kernels, or that the platform's CPU has no instructions for.
        """
        # After an operator its threads spin for milliseconds, and a kernel's would wait for their CPUs.
        torch.set_num_threads(1)
        self._platform = platform
        self._seeds = tuple(seeds)
        self._budget_s = budget_s
        builder = Builder(CpuTarget(**platform.kernel_target()))
        self._kernels = kernels_for(platform, builder)
        self._call_us = _python_call_us(builder)
        self._probe = kernel_probe(builder)

    def measure(self, op: Op, cells: Sequence[Cell]) -> Iterator[LatencyRecord]:
        """One record for each cell, in order, as soon as it is measured; a cell that fails yields its error."""
        bench = _Bench(OpData(op))
        compile_ahead(self._kernels, bench.data, self._likely(bench, cells), self._platform.threads)
        for cell in cells:
            try:
                with torch.inference_mode():
                    record = self._record(cell, *self._measure(bench, cell))
            except Exception as error:  # one broken kernel never ends a profile
                record = error_record(
                    op, cell.pattern, cell.sparsity, cell.library, dtype=self._platform.dtype,
                    threads=self._platform.threads, measured_at=_now(), error=f"{type(error).__name__}: {error}",
                )  # fmt: skip
            yield record

    def _measure(self, bench: _Bench, cell: Cell) -> tuple[str, npt.NDArray[np.float64], float]:
        """The best variant's name, its times in microseconds, and its largest relative error."""
        data = bench.data
        block = parse_pattern(cell.pattern)
        if cell.library != RUNTIME_LIBRARY:
            return "", *self._measure_peer(data, cell)
        variants = self._variants(bench, block, cell.sparsity)
        seeds = self._seeds if block is not None and data.matrix.numel() <= _LARGE_MATRIX else self._seeds[:1]
        calls: list[Call] = []
        errors, launches, flushes = [], [], []
        for seed in seeds:
            mask = data.mask(block, cell.sparsity, seed)
            for variant, kernel in zip(variants, self._kernels.bound(data, mask, variants, bench.buffers)):
                if bench.x is None:
                    bench.x = kernel.prepare(data.x)
                kernel(bench.x)
                if seed == seeds[0]:
                    errors.append(self._checked(data.relative_error(kernel.result(), mask), cell, f"variant {variant}"))
                calls.append(partial(kernel, bench.x))
                launches.append(kernel.launches)
                flushes.append(kernel.flush)
        times_us = interleaved_us(calls, budget_s=self._budget_s, probe=self._probe, before=flushes)
        times = np.stack(times_us).reshape(len(seeds), len(variants), -1)
        # The first half of the runs chooses the variant, the second half times it: a lucky reading earns nothing.
        half = times.shape[-1] // 2
        best = int(np.median(times[:, :, :half], axis=2).mean(axis=0).argmin())
        bench.fastest[block] = variants[best]
        chosen = times[:, best, half:].reshape(-1)
        # Networks call kernels without Python.
        in_network = np.maximum(chosen - self._call_us * launches[best], 0.5 * chosen)
        return str(variants[best]), in_network, errors[best]

    def _measure_peer(self, data: OpData, cell: Cell) -> tuple[npt.NDArray[np.float64], float]:
        """Another library's times for one layer, in microseconds, and its relative error."""
        if cell.pattern != "dense":
            raise MeasurementError(f"{cell.library} measures dense layers only, but got pattern {cell.pattern}")
        peer = PEERS[self._platform.dtype][cell.library]
        call = peer.make(self._kernels.dense(data, self._platform.threads))
        mask = data.mask(None, 0.0, 0)
        error = self._checked(data.relative_error(call.read(call.run()), mask), cell, cell.library)
        torch.set_num_threads(self._platform.threads)
        try:
            place_threads(call.run, self._platform.threads)
            (times,) = interleaved_us([call.run], budget_s=self._budget_s, probe=self._probe, slice_s=_PEER_SLICE_S)
            return times / call.layers, error
        finally:
            torch.set_num_threads(1)

    def _likely(self, bench: _Bench, cells: Sequence[Cell]) -> Iterator[tuple[Block | None, float, Variant]]:
        """The first and the last cell of each variant that `_variants` may take: patterns share kernels, and a kernel
        differs at most between few weights and many."""
        taken: dict[Variant, list[tuple[Block | None, float]]] = {}
        blocks: set[Block | None] = set()
        for cell in cells:
            if cell.library == RUNTIME_LIBRARY:
                block = parse_pattern(cell.pattern)
                found = self._found(bench, block, cell.sparsity)
                for variant in found[:1] if block in blocks else found:
                    taken.setdefault(variant, []).append((block, cell.sparsity))
                blocks.add(block)
        for variant, places in taken.items():
            for block, sparsity in dict.fromkeys([places[0], places[-1]]):
                yield block, sparsity, variant

    def _found(self, bench: _Bench, block: Block | None, sparsity: float) -> list[Variant]:
        key = 1 if block is None else block.rows, sparsity
        if key not in bench.likeliest:
            bench.likeliest[key] = self._kernels.variants(bench.data.op, *key, _MOST_VARIANTS)
        return bench.likeliest[key]

    def _variants(self, bench: _Bench, block: Block | None, sparsity: float) -> list[Variant]:
        """What is measured: the likeliest, and later the fastest at the pattern's last sparsity beside the first."""
        found = self._found(bench, block, sparsity)
        last = bench.fastest.get(block)
        return found if last is None else list(dict.fromkeys([last, found[0]]))

    def _checked(self, error: float, cell: Cell, computed_by: str) -> float:
        """The relative error. Raises MeasurementError if it is too large."""
        largest = self._kernels.largest_error
        if not error <= largest:
            raise MeasurementError(
                f"a relative error in {self._platform.dtype} must be at most {largest:g}, "
                f"but {computed_by} of {cell} has {error:g}; please report it"
            )
        return error

    def _record(self, cell: Cell, variant: str, times: npt.NDArray[np.float64], error: float) -> LatencyRecord:
        p10, median, p90 = np.percentile(times, (10, 50, 90))
        return LatencyRecord(
            cell.op, cell.pattern, cell.sparsity, cell.library, variant, self._platform.dtype, self._platform.threads,
            latency_us=float(median), p10_us=float(p10), p90_us=float(p90), runs=times.size,
            max_relative_error=error, measured_at=_now(),
        )  # fmt: skip


def _python_call_us(builder: Builder) -> float:
    """Microseconds that calling a kernel from Python costs: those of one that does next to nothing."""

    def body(*arrays: Any) -> None:
        T.buffer_store(arrays[-1], arrays[0][0], [0])

    array = np.zeros(1, np.float32)
    kernel = builder.bound(
        KernelCall("nothing", prim_func(["float32"] * _ARGUMENTS, body), (array,) * (_ARGUMENTS - 2), 1)
    )
    x, y = memory(torch.zeros(1)), memory(torch.zeros(1))
    return float(np.median(interleaved_us([lambda: kernel(x, y)], budget_s=0.02)[0]))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
