"""Measuring one op on this machine: every asked pattern and sparsity, by our kernels and by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tvm.script import tirx as T

from pruneaug.errors import MeasurementError
from pruneaug.kernels.build import Builder, CpuTarget, memory
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.layers import LayerKernel
from pruneaug.kernels.products import Weights
from pruneaug.kernels.variants import Variant, candidates
from pruneaug.kernels.vectors import prim_func
from pruneaug.latency.records import LatencyRecord, error_record
from pruneaug.network.ops import Conv2dOp, LinearOp, Op
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.masks import keep_largest, synthetic_scores
from pruneaug.profiler.plan import Cell
from pruneaug.profiler.reference import Reference
from pruneaug.profiler.timing import interleaved_us
from pruneaug.sparsity.masks import expand_blocks
from pruneaug.sparsity.matrix import weight_from_matrix
from pruneaug.sparsity.patterns import Block, parse_pattern

_LARGEST_ERROR = 1e-4  # float32 products of these lengths stay below 1e-5; a wrong kernel is far above
_MOST_VARIANTS = 3
_COLD_BYTES, _CACHE_BYTES = 2 << 20, 64 << 20  # more than the caches of one core, than those of all
_LARGE_WEIGHTS = 1 << 20  # bytes; layers this large come in networks that no cache holds
_ARGUMENTS = 11  # of a kernel's call
_LARGE_MATRIX = 200_000  # weights; masks of larger ones vary less than times do

Call = Callable[[], object]


class Measurer:
    """Measures cells on the local CPU. Needs a process of its own: it sets the number of threads."""

    def __init__(self, platform: Platform, *, seeds: Sequence[int] = (0, 1), budget_s: float = 0.025) -> None:
        """`budget_s` is about the time that each cell's repeats take; `seeds` are those of its masks."""
        torch.set_num_threads(platform.threads)
        self._platform = platform
        self._seeds = tuple(seeds)
        self._budget_s = budget_s
        self._builder = Builder(CpuTarget(**platform.kernel_target()))
        self._call_us = _python_call_us(self._builder)

    def measure(self, op: Op, cells: Sequence[Cell]) -> Iterator[LatencyRecord]:
        """One record for each cell, in order, as soon as it is measured; a cell that fails yields its error."""
        bench = _OpBench(op, self._builder)
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

    def _measure(self, bench: _OpBench, cell: Cell) -> tuple[str, npt.NDArray[np.float64], float]:
        """The best variant's name, its times in microseconds, and its largest relative error."""
        block = parse_pattern(cell.pattern)
        if cell.library == "torch":
            if block is not None:
                raise MeasurementError(f"PyTorch measures dense layers only, but got pattern {cell.pattern}")
            call, error = bench.dense_torch()
            _check_error(error, cell, "PyTorch")
            return "", interleaved_us([call], budget_s=self._budget_s)[0], error
        variants = bench.variants(block, cell.sparsity)
        seeds = self._seeds if block is not None and bench.weights <= _LARGE_MATRIX else self._seeds[:1]
        calls: list[Call] = []
        errors, launches = [], []
        for seed in seeds:
            mask = bench.mask(block, cell.sparsity, seed)
            for variant in variants:
                kernel, x, error = bench.sparse(mask, variant)
                _check_error(error, cell, f"variant {variant}")
                calls.append(partial(kernel, x))
                errors.append(error)
                launches.append(kernel.launches)
        times = np.stack(interleaved_us(calls, budget_s=self._budget_s)).reshape(len(seeds), len(variants), -1)
        # The first half of the runs chooses the variant, the second half times it: a lucky reading earns nothing.
        half = times.shape[-1] // 2
        best = int(np.median(times[:, :, :half], axis=2).mean(axis=0).argmin())
        bench.fastest[block] = variants[best]
        chosen = times[:, best, half:].reshape(-1)
        # Networks call kernels without Python.
        in_network = np.maximum(chosen - self._call_us * launches[best], 0.5 * chosen)
        return str(variants[best]), in_network, max(errors[best :: len(variants)])

    def _record(self, cell: Cell, variant: str, times: npt.NDArray[np.float64], error: float) -> LatencyRecord:
        p10, median, p90 = np.percentile(times, (10, 50, 90))
        return LatencyRecord(
            cell.op, cell.pattern, cell.sparsity, cell.library, variant, self._platform.dtype, self._platform.threads,
            latency_us=float(median), p10_us=float(p10), p90_us=float(p90), runs=times.size,
            max_relative_error=error, measured_at=_now(),
        )  # fmt: skip


class _OpBench:
    """The input, the weights and the reference of one op."""

    def __init__(self, op: Op, builder: Builder) -> None:
        self._op = op
        self._builder = builder
        generator = torch.Generator().manual_seed(0)
        self._shape = op.matrix_shape
        self._matrix = torch.randn(self._shape, generator=generator)
        self._bias = torch.randn(self._shape[0], generator=generator)
        size = (
            (op.tokens, op.in_features) if isinstance(op, LinearOp) else (op.batch, op.in_channels, op.height, op.width)
        )
        self._x = torch.randn(size, generator=generator)
        self._reference = Reference(op, self._x, generator)
        self._scores: dict[tuple[Block, int], torch.Tensor] = {}
        self.fastest: dict[Block | None, Variant] = {}

    @property
    def weights(self) -> int:
        return self._matrix.numel()

    def variants(self, block: Block | None, sparsity: float) -> list[Variant]:
        """What is measured: the likeliest, and later the fastest at the pattern's last sparsity beside the first."""
        target = self._builder.target
        found = candidates(
            self._op, 1 if block is None else block.rows, sparsity,
            lanes=target.lanes, registers=target.registers, threads=target.threads, most=_MOST_VARIANTS,
        )  # fmt: skip
        last = self.fastest.get(block)
        return found if last is None else list(dict.fromkeys([last, found[0]]))

    def mask(self, block: Block | None, sparsity: float, seed: int) -> torch.Tensor:
        """A bool mask [N, K] of the pattern, from the same scores for every sparsity."""
        if block is None:
            return torch.ones(self._shape, dtype=torch.bool)
        if (block, seed) not in self._scores:
            if any(cached != block for cached, _ in self._scores):
                self._scores.clear()  # cells come grouped by pattern: one pattern's scores are enough to keep
            generator = torch.Generator().manual_seed(seed)
            self._scores[block, seed] = synthetic_scores(self._shape, block, generator)
        return expand_blocks(keep_largest(self._scores[block, seed], sparsity), block, self._shape)

    def sparse(self, mask: torch.Tensor, variant: Variant) -> tuple[LayerKernel, Any, float]:
        """Our kernel as a network calls it, from planes to planes, its input there, and its relative error."""
        kept_bytes = 4 * int(mask.sum())
        kernel = LayerKernel(
            self._op, Weights(self._matrix, mask, self._bias), variant, self._builder, cold_bytes=_cold(kept_bytes)
        )  # fmt: skip
        x = kernel.prepare(self._x)
        kernel(x)
        error = self._reference.relative_error(kernel.result(), self._matrix * mask, self._bias)
        return kernel, x, error

    def dense_torch(self) -> tuple[Call, float]:
        """A call of PyTorch's own operator, and its relative error."""
        op = self._op
        weight = self._matrix
        if isinstance(op, Conv2dOp):
            weight = weight_from_matrix(weight, (op.out_channels, op.in_channels // op.groups, *op.kernel))
        copies = min(64, max(1, _cold(weight.nbytes) // weight.nbytes))
        weights = cycle([weight.clone() for _ in range(copies)])
        if isinstance(op, LinearOp):

            def call() -> torch.Tensor:
                return F.linear(self._x, next(weights), self._bias)

        else:
            top, left, bottom, right = op.padding
            even = top == bottom and left == right

            def call() -> torch.Tensor:
                x = self._x if even else F.pad(self._x, (left, right, top, bottom))
                padding = (top, left) if even else (0, 0)
                return F.conv2d(x, next(weights), self._bias, op.stride, padding, op.dilation, op.groups)

        return call, self._reference.relative_error(call(), self._matrix, self._bias)


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


def _cold(weight_bytes: int) -> int:
    """How much memory copies of a layer's weights take until they are as far away as in a network."""
    return _CACHE_BYTES if weight_bytes >= _LARGE_WEIGHTS else _COLD_BYTES


def _check_error(error: float, cell: Cell, computed_by: str) -> None:
    if not error <= _LARGEST_ERROR:
        raise MeasurementError(
            f"a kernel's relative error must be at most {_LARGEST_ERROR:g}, but {computed_by} of {cell} has {error:g}; "
            "please report it"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
