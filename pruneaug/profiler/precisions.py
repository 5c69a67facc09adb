"""What a measurement needs of a dtype: our kernels in it, other libraries' layers, and how far results may be off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

from pruneaug.kernels.build import Builder
from pruneaug.kernels.cold import cold_bytes
from pruneaug.kernels.layers import Buffers, LayerKernel
from pruneaug.kernels.lowp.formats import BFLOAT16, INT8, Affine, Format, affine_of, format_for
from pruneaug.kernels.lowp.layers import LowpLayer, Precision, lowp_candidates
from pruneaug.kernels.variants import Variant, candidates
from pruneaug.kernels.weights import Weights
from pruneaug.network.ops import Op
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.op_data import OpData
from pruneaug.profiler.op_peers import DenseLayer
from pruneaug.profiler.placement import use_all_cpus
from pruneaug.sparsity.patterns import Pattern


class Kernels(Protocol):
    """Our kernels of one dtype. A result whose relative error is above `largest_error` is wrong."""

    largest_error: float

    def variants(self, op: Op, block_rows: int, sparsity: float, most: int) -> list[Variant]:
        """The likeliest of the op's variants, the likeliest first."""
        ...

    def bound(
        self, data: OpData, mask: torch.Tensor, variants: Sequence[Variant], buffers: Buffers, *, cold: bool = True
    ) -> Sequence[LayerKernel | LowpLayer]:
        """The op under a mask by each variant, its weights as far away as in a network if `cold`, activations in
        `buffers`."""
        ...

    def dense(self, data: OpData, threads: int) -> DenseLayer:
        """The op as other libraries get it."""
        ...


def kernels_for(platform: Platform, builder: Builder) -> Kernels:
    """Raises InputError for a dtype that has no kernels, or that the platform's CPU has no instructions for."""
    if platform.dtype == "float32":
        return Float32Kernels(builder)
    return LowpKernels(builder, format_for(platform.dtype, platform.isa))


def compile_ahead(
    kernels: Kernels, data: OpData, asked: Iterable[tuple[Pattern | None, float, Variant]], threads: int
) -> None:
    """Compile the kernels of these patterns at these sparsities side by side: one alone leaves the other cores idle.

    What fails does so again when it is asked for, where it is reported.
    """

    def compile_one(one: tuple[Pattern | None, float, Variant]) -> None:
        block, sparsity, variant = one
        kernels.bound(data, data.mask(block, sparsity, 0), [variant], Buffers(), cold=False)

    with _workers(threads) as pool, contextlib.suppress(Exception):
        list(pool.map(compile_one, asked))


def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=use_all_cpus)


class Float32Kernels:
    """Products of these lengths stay below 1e-5; a wrong kernel is far above."""

    largest_error = 1e-4

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._threads = _workers(builder.target.threads)

    def variants(self, op: Op, block_rows: int, sparsity: float, most: int) -> list[Variant]:
        target = self._builder.target
        return candidates(
            op, block_rows, sparsity,
            lanes=target.lanes, registers=target.registers, threads=target.threads, most=most,
        )  # fmt: skip

    def bound(
        self, data: OpData, mask: torch.Tensor, variants: Sequence[Variant], buffers: Buffers, *, cold: bool = True
    ) -> Sequence[LayerKernel]:
        weights, far = Weights(data.matrix, mask, data.bias), cold_bytes(4 * int(mask.sum())) if cold else 0

        def make(variant: Variant) -> LayerKernel:
            return LayerKernel(data.op, weights, variant, self._builder, cold_bytes=far, buffers=buffers)

        return list(self._threads.map(make, variants))

    def dense(self, data: OpData, threads: int) -> DenseLayer:
        return DenseLayer(data.op, data.matrix, data.bias, data.x, threads)


class LowpKernels:
    """Rounding of random values to these formats makes 0.003 and 0.016 of error; a wrong kernel is far above."""

    def __init__(self, builder: Builder, form: Format) -> None:
        self._builder, self._form = builder, form
        self.largest_error = {BFLOAT16: 0.01, INT8: 0.05}[form]

    def variants(self, op: Op, block_rows: int, sparsity: float, most: int) -> list[Variant]:
        return lowp_candidates(op, block_rows, sparsity, self._form, self._builder.target, most)

    def bound(
        self, data: OpData, mask: torch.Tensor, variants: Sequence[Variant], buffers: Buffers, *, cold: bool = True
    ) -> Sequence[LowpLayer]:
        weights = Weights(data.matrix, mask, data.bias)
        far = cold_bytes(4 * int(mask.sum()) // self._form.per_word) if cold else 0
        precision = Precision(self._form, *_quantisation(data, mask))
        return [
            LowpLayer(data.op, weights, variant, self._builder, precision, cold_bytes=far, buffers=buffers)
            for variant in variants
        ]

    def dense(self, data: OpData, threads: int) -> DenseLayer:
        quantisation = _quantisation(data, data.mask(None, 0.0, 0))
        return DenseLayer(data.op, data.matrix, data.bias, data.x, threads, *quantisation)


def _quantisation(data: OpData, mask: torch.Tensor) -> tuple[Affine, Affine]:
    """Of the input and of the output under a mask."""
    return affine_of(data.x), affine_of(data.output(mask))
