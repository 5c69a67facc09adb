"""Normalisation over channels: layer norms of tokens and of images, and root mean square norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T

from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.planes import Planes, inside
from pruneaug.kernels.tiles import Tile
from pruneaug.kernels.vectors import clear_around, constant, load, prim_func, store, tasks

_CHAINS = 4  # sums side by side, which hide the latency of an addition


def layer_norm(
    x: Planes,
    y: Planes,
    weight: npt.NDArray[np.float32] | None,
    bias: npt.NDArray[np.float32] | None,
    eps: float,
    lanes: int,
    *,
    residual: bool = False,
    rms: bool = False,
) -> KernelCall:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the channels of each position; x -> y.

    With `residual` a second input, laid out as x, is added to x first. With `rms` the mean counts as 0. `y` must have
    the rows, columns and pitch of `x`; the strides may differ.
    """
    if (x.images, x.channels, x.rows, x.cols, x.pitch) != (y.images, y.channels, y.rows, y.cols, y.pitch):
        raise ValueError(f"a norm's output must have the positions of its input, but got {y} for {x}")
    scale = np.ones(x.channels, np.float32) if weight is None else weight
    shift = np.zeros(x.channels, np.float32) if bias is None else bias
    function = _layer_norm(x, y, eps, residual, rms, lanes)
    name = "root mean square norm" if rms else "layer norm"
    kept = inside(y, -(-y.positions // lanes) * lanes).astype(np.float32)
    return KernelCall(name, function, (scale, shift, kept), y.size)


@cache
def _layer_norm(x: Planes, y: Planes, eps: float, residual: bool, rms: bool, lanes: int) -> Any:
    """Arrays: x; the residual; weight, bias [channels]; inside [vectors of an image * lanes]; y."""
    row_vectors = -(-x.positions // lanes)
    # Two vectors are a pair of cache lines, which the processor fetches together; but few positions must keep all busy.
    vectors = 2 if x.images * row_vectors >= 8 and row_vectors > 1 else 1
    tiles = -(-row_vectors // vectors)
    chains = min(_CHAINS, x.channels)

    def body(*arrays: Any) -> None:
        *inputs, weight, bias, inside, out = arrays

        def task(index: Any) -> None:
            image, start = T.bind(index // tiles), T.bind(T.min(index % tiles * vectors, row_vectors - vectors) * lanes)
            base = T.bind(image * x.image_stride + x.lead + start)
            out_base = T.bind(image * y.image_stride + y.lead + start)

            def value(channel: Any, vector: int) -> Any:
                values = [load(array, base + channel * x.channel_stride + vector * lanes, lanes) for array in inputs]
                return values[0] + values[1] if residual else values[0]

            def mean_of(term: Callable[[Any, int], Any]) -> list[Any]:
                """The mean over the channels of term(channel, vector), for each vector."""
                sums = Tile(chains, vectors, lanes)
                sums.fill(0.0)
                with T.serial(x.channels // chains) as block:
                    for chain in range(chains):
                        for vector in range(vectors):
                            sums[chain, vector] = sums[chain, vector] + term(block * chains + chain, vector)
                for chain in range(x.channels % chains):
                    for vector in range(vectors):
                        channel = x.channels // chains * chains + chain
                        sums[chain, vector] = sums[chain, vector] + term(channel, vector)
                means = []
                for vector in range(vectors):
                    total = sums[0, vector]
                    for chain in range(1, chains):
                        total = total + sums[chain, vector]
                    means.append(T.bind(total * constant(1 / x.channels, lanes)))
                return means

            # Squares of differences from the mean, not the mean of squares: no digits cancel.
            means = [constant(0.0, lanes)] * vectors if rms else mean_of(value)

            def square(channel: Any, vector: int) -> Any:
                difference = T.bind(value(channel, vector) - means[vector])
                return difference * difference

            variances = mean_of(square)
            factors = [T.bind(constant(1.0, lanes) / T.sqrt(v + constant(eps, lanes))) for v in variances]
            masks = [T.bind(load(inside, start + vector * lanes, lanes)) for vector in range(vectors)]
            with T.serial(x.channels) as channel:
                for vector in range(vectors):
                    scaled = (value(channel, vector) - means[vector]) * factors[vector]
                    result = scaled * T.broadcast(weight[channel], lanes) + T.broadcast(bias[channel], lanes)
                    if y.zero_border:
                        result = T.Select(masks[vector] > constant(0.0, lanes), result, constant(0.0, lanes))
                    store(out, out_base + channel * y.channel_stride + vector * lanes, result, lanes)

        def clear(index: Any) -> None:
            channel, image = index // y.images, index % y.images
            clear_around(out, channel * y.channel_stride + image * y.image_stride, image, y, lanes)

        if y.zero_border:
            tasks(y.images * y.channels, y.size, clear)
        tasks(x.images * tiles, y.size, task)

    return prim_func(["float32"] * (2 + residual + 3), body)
