"""Measuring one op on this machine: every asked pattern and sparsity by our kernels, and dense by other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from tvm.script import tirx as T

from pruneaug.errors import MeasurementError
from pruneaug.kernels.build import Builder, CpuTarget, memory
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.layers import Buffers
from pruneaug.kernels.variants import Variant
from pruneaug.kernels.vectors import prim_func
from pruneaug.latency.records import LatencyRecord
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.network.ops import Op
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.cells import MOST_VARIANTS, Times, checked, failed, fastest, mask_seeds, timed, to_try
from pruneaug.profiler.op_data import OpData
from pruneaug.profiler.op_peers import PEERS
from pruneaug.profiler.placement import place_threads
from pruneaug.profiler.plan import Cell
from pruneaug.profiler.precisions import compile_ahead, kernels_for
from pruneaug.profiler.probe import kernel_probe
from pruneaug.profiler.timing import interleaved_us
from pruneaug.sparsity.patterns import Pattern, parse_pattern

_PEER_SLICE_S = 0.02  # the probe must wait for the library's threads to stop spinning
_ARGUMENTS = 11  # of a kernel's call

Call = Callable[[], object]


@dataclass(slots=True)
class _Bench:
    """An op that is measured: the input that all its kernels read, the likeliest variants by the rows of a block and
    the sparsity, the fastest variant of each pattern at the sparsity that was measured last."""

    data: OpData
    buffers: Buffers = field(default_factory=Buffers)
    x: Any = None
    likeliest: dict[tuple[int, float], list[Variant]] = field(default_factory=dict)
    fastest: dict[Pattern | None, Variant] = field(default_factory=dict)


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
                    variant, times_us, worst = self._measure(bench, cell)
                record = timed(cell, self._platform, variant, times_us, worst)
            except Exception as error:  # one broken kernel never ends a profile
                record = failed(cell, self._platform, f"{type(error).__name__}: {error}")
            yield record

    def _measure(self, bench: _Bench, cell: Cell) -> tuple[str, Times, float]:
        """The best variant's name, its times in microseconds, and its largest relative error."""
        data = bench.data
        block = parse_pattern(cell.pattern)
        if cell.library != RUNTIME_LIBRARY:
            return "", *self._measure_peer(data, cell)
        variants = to_try(self._likeliest(bench, block, cell.sparsity), bench.fastest.get(block))
        seeds = mask_seeds(data.op, block, self._seeds)
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
        best, chosen = fastest(times)
        bench.fastest[block] = variants[best]
        # Networks call kernels without Python.
        in_network = np.maximum(chosen - self._call_us * launches[best], 0.5 * chosen)
        return str(variants[best]), in_network, errors[best]

    def _measure_peer(self, data: OpData, cell: Cell) -> tuple[Times, float]:
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

    def _likely(self, bench: _Bench, cells: Sequence[Cell]) -> Iterator[tuple[Pattern | None, float, Variant]]:
        """The first and the last cell of each variant that `_measure` may try: patterns share kernels, and a kernel
        differs at most between few weights and many."""
        taken: dict[Variant, list[tuple[Pattern | None, float]]] = {}
        blocks: set[Pattern | None] = set()
        for cell in cells:
            if cell.library == RUNTIME_LIBRARY:
                block = parse_pattern(cell.pattern)
                found = self._likeliest(bench, block, cell.sparsity)
                for variant in found[:1] if block in blocks else found:
                    taken.setdefault(variant, []).append((block, cell.sparsity))
                blocks.add(block)
        for variant, places in taken.items():
            for block, sparsity in dict.fromkeys([places[0], places[-1]]):
                yield block, sparsity, variant

    def _likeliest(self, bench: _Bench, block: Pattern | None, sparsity: float) -> list[Variant]:
        key = 1 if block is None else block.rows, sparsity
        if key not in bench.likeliest:
            bench.likeliest[key] = self._kernels.variants(bench.data.op, *key, MOST_VARIANTS)
        return bench.likeliest[key]

    def _checked(self, error: float, cell: Cell, computed_by: str) -> float:
        return checked(error, self._kernels.largest_error, cell, self._platform.dtype, computed_by)


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
