"""Measuring one op in reduced precision: by our kernels, and dense by other libraries in the same precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pruneaug.errors import MeasurementError
from pruneaug.kernels.build import Builder, CpuTarget
from pruneaug.kernels.lowp.formats import BFLOAT16, INT8, Affine, affine_of, format_for
from pruneaug.kernels.lowp.layers import LowpLayer, Precision, lowp_candidates
from pruneaug.kernels.products import Weights
from pruneaug.kernels.variants import Variant
from pruneaug.latency.records import LatencyRecord, error_record
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.network.ops import LinearOp, Op
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.lowp_peers import PEERS, DenseLayer
from pruneaug.profiler.masks import keep_largest, synthetic_scores
from pruneaug.profiler.plan import Cell
from pruneaug.profiler.reference import Reference
from pruneaug.profiler.timing import interleaved_us
from pruneaug.sparsity.masks import expand_blocks
from pruneaug.sparsity.matrix import weight_from_matrix
from pruneaug.sparsity.patterns import parse_pattern

# Rounding of random values to these formats makes 0.003 and 0.016 of error; a wrong kernel is far above.
_LARGEST_ERROR = {BFLOAT16: 0.01, INT8: 0.05}
_MOST_VARIANTS = 4

Call = Callable[[], object]


class LowpMeasurer:
    """Measures cells on the local CPU, in the dtype of the platform. Needs a process of its own, as `Measurer` does."""

    def __init__(self, platform: Platform, *, seeds: Sequence[int] = (0, 1), budget_s: float = 0.06) -> None:
        """`budget_s` is about the time that each cell's repeats take; `seeds` are those of its masks.

        Raises InputError for a dtype that is no reduced precision, or that the platform's CPU has no instructions for.
        """
        torch.set_num_threads(platform.threads)
        self._form = format_for(platform.dtype, platform.isa)
        self._platform = platform
        self._seeds = tuple(seeds)
        self._budget_s = budget_s
        self._builder = Builder(CpuTarget(**platform.kernel_target()))

    def measure(self, op: Op, cells: Sequence[Cell]) -> Iterator[LatencyRecord]:
        """One record for each cell, in order, as soon as it is measured; a cell that fails yields its error."""
        bench = _Layer(op)
        for cell in cells:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            try:
                with torch.inference_mode():
                    variant, times, error = self._measure(bench, cell)
            except Exception as problem:  # one broken kernel never ends a benchmark
                yield error_record(
                    op, cell.pattern, cell.sparsity, cell.library, dtype=self._form.name,
                    threads=self._platform.threads, measured_at=now, error=f"{type(problem).__name__}: {problem}",
                )  # fmt: skip
                continue
            p10, median, p90 = np.percentile(times, (10, 50, 90))
            yield LatencyRecord(
                op, cell.pattern, cell.sparsity, cell.library, variant, self._form.name, self._platform.threads,
                latency_us=float(median), p10_us=float(p10), p90_us=float(p90), runs=times.size,
                max_relative_error=error, measured_at=now,
            )  # fmt: skip

    def _measure(self, bench: _Layer, cell: Cell) -> tuple[str, npt.NDArray[np.float64], float]:
        """The best variant's name, its times in microseconds, and its largest relative error."""
        if cell.library != RUNTIME_LIBRARY:
            call, error = self._dense(bench, cell)
            return "", interleaved_us([call], budget_s=self._budget_s)[0], error
        block = parse_pattern(cell.pattern)
        variants = lowp_candidates(
            bench.op, 1 if block is None else block.rows, cell.sparsity, self._form, self._builder.target,
            _MOST_VARIANTS,
        )  # fmt: skip
        calls, errors = [], []
        seeds = self._seeds if block is not None else self._seeds[:1]
        for seed in seeds:
            mask = bench.mask(cell, seed)
            y = affine_of(bench.output(mask))
            for variant in variants:
                call, error = self._sparse(bench, mask, y, variant, cell)
                calls.append(call)
                errors.append(error)
        times = np.stack(interleaved_us(calls, budget_s=self._budget_s)).reshape(len(seeds), len(variants), -1)
        # The first half of the runs chooses the variant, the second half times it: a lucky reading earns nothing.
        half = times.shape[-1] // 2
        best = int(np.median(times[:, :, :half], axis=2).mean(axis=0).argmin())
        return str(variants[best]), times[:, best, half:].reshape(-1), max(errors[best :: len(variants)])

    def _sparse(self, bench: _Layer, mask: torch.Tensor, y: Affine, variant: Variant, cell: Cell) -> tuple[Call, float]:
        """A call of our kernel from planes to planes, and its relative error."""
        weights = Weights(bench.matrix, mask, bench.bias)
        kernel = LowpLayer(bench.op, weights, variant, self._builder, Precision(self._form, bench.x_affine, y))
        x = kernel.prepare(bench.x)
        kernel(x)
        return lambda: kernel(x), self._checked(bench, kernel.result(), mask, cell, f"variant {variant}")

    def _dense(self, bench: _Layer, cell: Cell) -> tuple[Call, float]:
        """A call of a library's operator, and its relative error."""
        if cell.pattern != "dense":
            raise MeasurementError(f"{cell.library} measures dense layers only, but got pattern {cell.pattern}")
        mask = bench.mask(cell, 0)
        layer = DenseLayer(
            bench.op, bench.matrix, bench.bias, bench.x, bench.x_affine, affine_of(bench.output(mask)),
            self._platform.threads,
        )  # fmt: skip
        call, read = PEERS[self._form][cell.library].make(layer)
        return call, self._checked(bench, read(call()), mask, cell, cell.library)

    def _checked(self, bench: _Layer, result: torch.Tensor, mask: torch.Tensor, cell: Cell, computed_by: str) -> float:
        error = bench.reference.relative_error(result, bench.matrix * mask, bench.bias)
        if not error <= _LARGEST_ERROR[self._form]:
            raise MeasurementError(
                f"a kernel's relative error in {self._form.name} must be at most {_LARGEST_ERROR[self._form]:g}, but "
                f"{computed_by} of {cell} has {error:g}; please report it"
            )
        return error


class _Layer:
    """The input, the weights and the reference of one op, all float32."""

    def __init__(self, op: Op) -> None:
        self.op = op
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(op.matrix_shape, generator=generator)
        self.bias = torch.randn(op.matrix_shape[0], generator=generator)
        size = (
            (op.tokens, op.in_features) if isinstance(op, LinearOp) else (op.batch, op.in_channels, op.height, op.width)
        )
        self.x = torch.randn(size, generator=generator)
        self.x_affine = affine_of(self.x)
        self.reference = Reference(op, self.x, generator)

    def mask(self, cell: Cell, seed: int) -> torch.Tensor:
        """A bool mask [N, K] of the cell's pattern and sparsity."""
        block, shape = parse_pattern(cell.pattern), self.op.matrix_shape
        if block is None:
            return torch.ones(shape, dtype=torch.bool)
        scores = synthetic_scores(shape, block, torch.Generator().manual_seed(seed))
        return expand_blocks(keep_largest(scores, cell.sparsity), block, shape)

    def output(self, mask: torch.Tensor) -> torch.Tensor:
        """The op's output in float32, whose range int8 covers."""
        op, matrix = self.op, self.matrix * mask
        if isinstance(op, LinearOp):
            return F.linear(self.x, matrix, self.bias)
        weight = weight_from_matrix(matrix, (op.out_channels, op.in_channels, *op.kernel))
        top, left, bottom, right = op.padding
        return F.conv2d(F.pad(self.x, (left, right, top, bottom)), weight, self.bias, op.stride, 0, op.dilation)
