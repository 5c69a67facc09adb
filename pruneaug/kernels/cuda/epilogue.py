"""What becomes of a thread block's sums: bias, residual, activation and clamp, then stores to global memory.

A warp has slabs of 16 rows of its part of the tile, `CudaVariant.slab` rows apart.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.cuda import fragments as gpu
from pruneaug.kernels.cuda.formats import Format
from pruneaug.kernels.cuda.variants import CudaVariant
from pruneaug.kernels.functions import apply


def store_rows(
    form: Format, variant: CudaVariant, activation: str, sums: Any, arrays: dict[str, Any], scalars: Any, token: Any,
    output: Any, lane: Any,
) -> None:  # fmt: skip
    """Y [tokens, N] from a warp's sums: rows are tokens, the first of them `token`, columns outputs from `output`."""
    together = variant.together(form)
    run, mmas = together // 4, together // 8  # outputs of one token that a lane holds, and products that they are of
    values, bias = gpu.registers(run, "float32"), gpu.registers(run, "float32")
    words = gpu.registers(run * form.size // 4)
    columns = variant.part_outputs // 8
    for part in range(variant.part_outputs // together):
        column = T.bind(output + part * together + lane % 4 * run)
        for first in range(0, run, 4):
            gpu.load_words(bias, arrays["bias"].ptr_to([column + first]), 4, first)
        for row in range(variant.part_tokens // variant.slab * 2):
            position = T.bind(token + row // 2 * variant.slab + row % 2 * 8 + lane // 4)
            with T.If(T.And(position < scalars.tokens, column < scalars.outputs)), T.Then():
                to = T.bind(position * scalars.y_stride + column)
                if "residual" in arrays:
                    gpu.load_words(words, arrays["residual"].ptr_to([to]), run * form.size // 4)
                    gpu.unpack(form, words, values, run)
                for i in range(run):
                    mma = row // 2 * columns + part * mmas + i // 2
                    total = sums[4 * mma + row % 2 * 2 + i % 2] + bias[i]
                    if "residual" in arrays:
                        total = total + values[i]
                    _finish(activation, values, i, total, scalars)
                gpu.pack(form, values, words, run)
                gpu.store_words(arrays["y"].ptr_to([to]), words, run * form.size // 4)


def store_columns(
    form: Format, variant: CudaVariant, activation: str, sums: Any, arrays: dict[str, Any], scalars: Any, token: Any,
    output: Any, lane: Any,
) -> None:  # fmt: skip
    """Y [N, tokens] from a warp's sums: rows are outputs, the first of them `output`, columns tokens from `token`."""
    values, words = gpu.registers(2, "float32"), gpu.registers(form.size // 2)
    columns = variant.part_tokens // 8
    for row in range(variant.part_outputs // variant.slab * 2):
        channel = T.bind(output + row // 2 * variant.slab + row % 2 * 8 + lane // 4)
        with T.If(channel < scalars.outputs), T.Then():
            bias = T.bind(arrays["bias"][channel])
            for column in range(columns):
                position = T.bind(token + column * 8 + lane % 4 * 2)
                with T.If(position < scalars.tokens), T.Then():
                    to = T.bind(channel * scalars.y_stride + position)
                    if "residual" in arrays:
                        gpu.load_words(words, arrays["residual"].ptr_to([to]), form.size // 2)
                        gpu.unpack(form, words, values, 2)
                    for i in range(2):
                        total = sums[4 * (row // 2 * columns + column) + row % 2 * 2 + i] + bias
                        if "residual" in arrays:
                            total = total + values[i]
                        _finish(activation, values, i, total, scalars)
                    gpu.pack(form, values, words, 2)
                    gpu.store_words(arrays["y"].ptr_to([to]), words, form.size // 2)


def _finish(activation: str, values: Any, i: int, total: Any, scalars: Any) -> None:
    """values[i] = clamp(activation(total)); NaN stays NaN."""
    T.buffer_store(values, total, [i])
    # CUDA's max and min drop NaN: functions are made of them, and the clamp is not.
    if activation != "none":
        T.buffer_store(values, T.Select(T.isnan(values[i]), values[i], apply(activation, values[i], 1)), [i])
    T.buffer_store(values, T.Select(values[i] < scalars.low, scalars.low, values[i]), [i])
    T.buffer_store(values, T.Select(values[i] > scalars.high, scalars.high, values[i]), [i])
