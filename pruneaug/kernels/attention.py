"""Multi-head attention of token planes: softmax(scale * q k^T + mask) v, the scores never leaving the cache."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T

from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.functions import apply
from pruneaug.kernels.planes import Planes
from pruneaug.kernels.tiles import Tile, blocks, copy_transposed, tile_height, tile_vectors
from pruneaug.kernels.vectors import constant, load, prim_func, store

MaskShape = tuple[int, int, int]  # (batches, heads, queries), of a mask [batches, heads, queries, keys]

_SCORES = 6144  # values of a task's scores: 24 KB, half of a first-level cache
_LOWEST = -float(np.finfo(np.float32).max)


def attention(
    q: Planes,
    k: Planes,
    v: Planes,
    y: Planes,
    heads: int,
    scale: float,
    target: CpuTarget,
    *,
    mask: npt.NDArray[np.float32] | tuple[int, ...] | None = None,
    causal: bool = False,
) -> KernelCall:
    """q [B, Tq, heads * d], k [B, Tk, heads * d], v [B, Tk, heads * e] -> y [B, Tq, heads * e]; all token planes.

    The additive `mask` is float32 [1 or B, 1 or heads, 1 or Tq, Tk] (batches may also be a divisor of B: image n then
    has mask n modulo batches). As an array it is a constant; as a shape, a fourth, plain input. `causal` hides keys
    behind their query; it and a mask that is an input exclude each other. Where all keys of a query are hidden by
    minus infinity, the result is 0, as in scaled_dot_product_attention; hidden by the lowest float32, it is the mean
    of v.

    Raises ValueError for shapes that do not fit.
    """
    tokens = all(planes.rows == 1 and planes.images == q.images for planes in (q, k, v, y))
    fits = tokens and k.cols == v.cols and q.cols == y.cols
    if not fits or q.channels != k.channels or v.channels != y.channels or q.channels % heads or v.channels % heads:
        raise ValueError(f"attention needs planes that fit each other and {heads} heads, but got {q}, {k}, {v}, {y}")
    if causal:
        if isinstance(mask, tuple):
            raise ValueError("attention takes either a mask as an input or causal=True, but got both")
        hidden = np.triu(np.full((1, 1, q.cols, k.cols), -np.inf, np.float32), 1)
        mask = hidden if mask is None else mask + hidden
    shape = None if mask is None else _checked(mask if isinstance(mask, tuple) else mask.shape, q, k, heads)
    constants = (np.ascontiguousarray(mask, np.float32).reshape(-1),) if isinstance(mask, np.ndarray) else ()
    function = _attention(q, k, v, y, heads, scale, shape, target.lanes, target.registers)
    return KernelCall("attention", function, constants, y.size)


def _checked(shape: tuple[int, ...], q: Planes, k: Planes, heads: int) -> MaskShape:
    if len(shape) == 4 and shape[3] == k.cols and shape[2] in (1, q.cols) and shape[1] in (1, heads):
        batches = shape[0]
        if q.images % batches == 0:
            return batches, shape[1], shape[2]
    raise ValueError(
        f"a mask must be [1 or {q.images}, 1 or {heads}, 1 or {q.cols}, {k.cols}], but got {list(shape)}; expand it"
    )


@cache
def _attention(
    q: Planes,
    k: Planes,
    v: Planes,
    y: Planes,
    heads: int,
    scale: float,
    mask: MaskShape | None,
    lanes: int,
    registers: int,
) -> Any:
    """Arrays: q, k, v; the mask; y. A task is a tile of queries, in whole vectors, of one head of one image.

    Scores [keys, queries of the tile] and results [features, queries] are products whose register tiles take scalars
    from k and v and vectors from q and the scores. A query in the border computes nonsense for itself only.
    """
    size, out_size, keys = k.channels // heads, v.channels // heads, k.cols
    row_vectors = -(-q.cols // lanes)
    vectors = tile_vectors(row_vectors, max(1, min(3, _SCORES // (keys * lanes))))
    height, width = tile_height(vectors, registers), vectors * lanes
    tiles = -(-row_vectors // vectors)

    def body(*arrays: Any) -> None:
        q_array, k_array, v_array, *masks, out = arrays

        def task(index: Any) -> None:
            head, image = T.bind(index // tiles % heads), T.bind(index // tiles // heads)
            start = T.bind(T.min(index % tiles * vectors, row_vectors - vectors) * lanes)
            q_base = T.bind(head * size * q.channel_stride + image * q.image_stride + q.lead + start)
            k_base = T.bind(head * size * k.channel_stride + image * k.image_stride + k.lead)
            v_base = T.bind(head * out_size * v.channel_stride + image * v.image_stride + v.lead)
            out_base = T.bind(head * out_size * y.channel_stride + image * y.image_stride + y.lead + start)
            scores = T.sblock_alloc_buffer((keys * width,), "float32", scope="local")
            tile, largest, weight, total = (Tile(rows, vectors, lanes) for rows in (height, 1, 1, 1))
            # Lower than any score but minus infinity, so that differences from it are never inf - inf.
            largest.fill(_LOWEST)
            total.fill(0.0)
            mask_base = 0
            if mask is not None:
                mask_base = T.bind((image % mask[0] * mask[1] + head % mask[1]) * (mask[2] * keys))
            by_query = mask is not None and mask[2] > 1
            if by_query:

                def mask_row(query: Any) -> Any:  # in the border, the last query's
                    return mask_base + T.min(start + query, q.cols - 1) * keys

                copy_transposed(masks[0], mask_row, scores, keys, vectors, lanes)

            def score(key: Any, rows: int) -> None:
                tile.fill(0.0)
                with T.serial(size) as d:
                    tile.multiply_add(
                        lambda row: k_array[k_base + d * k.channel_stride + key + row],
                        lambda vector: load(q_array, q_base + d * q.channel_stride + vector * lanes, lanes),
                        rows,
                    )
                for row in range(rows):
                    for vector in range(vectors):
                        at = (key + row) * width + vector * lanes
                        value = tile[row, vector] * constant(scale, lanes)
                        if by_query:
                            value = value + load(scores, at, lanes)
                        elif mask is not None:
                            value = value + T.broadcast(masks[0][mask_base + key + row], lanes)
                        value = T.bind(value)
                        store(scores, at, value, lanes)
                        largest[0, vector] = T.max(largest[0, vector], value)

            def weigh(key: Any) -> None:
                for vector in range(vectors):
                    at = key * width + vector * lanes
                    weight[0, vector] = apply("exp", load(scores, at, lanes) - largest[0, vector], lanes)
                    store(scores, at, weight[0, vector], lanes)
                    total[0, vector] = total[0, vector] + weight[0, vector]

            def result(feature: Any, rows: int) -> None:
                tile.fill(0.0)
                with T.serial(keys) as key:
                    tile.multiply_add(
                        lambda row: v_array[v_base + (feature + row) * v.channel_stride + key],
                        lambda vector: load(scores, key * width + vector * lanes, lanes),
                        rows,
                    )
                for row in range(rows):
                    for vector in range(vectors):
                        at = out_base + (feature + row) * y.channel_stride + vector * lanes
                        store(out, at, tile[row, vector] * factors[vector], lanes)

            blocks(keys, height, score)
            with T.serial(keys) as key:
                weigh(key)
            zero, one = constant(0.0, lanes), constant(1.0, lanes)
            factors = [T.bind(T.Select(total[0, i] == zero, zero, one / total[0, i])) for i in range(vectors)]
            blocks(out_size, height, result)

        with T.parallel(q.images * heads * tiles) as index, T.sblock("task"):
            T.reads()
            T.writes()
            task(index)

    return prim_func(["float32"] * (4 + (mask is not None)), body)
