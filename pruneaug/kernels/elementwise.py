"""Kernels of single values: activations, and an activation with another or with constants."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tvm.script import tirx as T

from pruneaug.errors import CompileError
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.functions import apply, preserves_zero
from pruneaug.kernels.planes import Planes
from pruneaug.kernels.vectors import clear_around, constant, load, prim_func, store, tasks

BinaryOp = Literal["add", "sub", "mul", "div"]
_Other = Literal["none", "same", "scalar", "channel", "image_channel"]


def unary(x: Planes, activation: str, lanes: int, *, low: float = -math.inf, high: float = math.inf) -> KernelCall:
    """clamp(activation(x), low, high), in the planes of x; `activation` is a name of `functions`."""
    border = preserves_zero(activation) and low <= 0 <= high
    name = "clamp" if activation == "none" else activation
    return _call(name, x, "add", "none", None, (), border, activation, low, high, lanes)


def binary(
    x: Planes,
    op: BinaryOp,
    other: Planes | npt.NDArray[np.float32],
    lanes: int,
    *,
    activation: str = "none",
    low: float = -math.inf,
    high: float = math.inf,
) -> KernelCall:
    """clamp(activation(x op other), low, high), in the planes of x.

    `other` is an activation in the same planes; or token planes of [1, images, channels], a value for each image and
    channel; or a constant float32 [channels] or [1]. The activations are the arguments: x, then `other`. Raises
    CompileError if `other` has another size.
    """
    after = preserves_zero(activation) and low <= 0 <= high
    if isinstance(other, Planes):
        if other == x:
            border = after and op != "div"  # 0 / 0 is NaN
            return _call(op, x, op, "same", None, (), border, activation, low, high, lanes)
        if (other.images, other.channels, other.rows, other.cols) != (1, x.channels, 1, x.images):
            raise CompileError(f"kernel {op} needs planes {x} or one value an image, but got {other}; report this bug")
        # 0 times infinity is NaN, so the border is written even for a product.
        return _call(op, x, op, "image_channel", other, (), False, activation, low, high, lanes)
    if other.shape not in ((1,), (x.channels,)):
        raise CompileError(f"kernel {op} needs 1 or {x.channels} constants, but got {other.shape}; report this bug")
    with np.errstate(all="ignore"):
        border = after and not np.any(_OPS[op](np.zeros_like(other), other))
    kind: _Other = "scalar" if other.shape == (1,) else "channel"
    return _call(op, x, op, kind, None, (other,), border, activation, low, high, lanes)


def _call(
    name: str,
    x: Planes,
    op: BinaryOp,
    kind: _Other,
    other: Planes | None,
    constants: tuple[npt.NDArray[Any], ...],
    keeps_border: bool,
    activation: str,
    low: float,
    high: float,
    lanes: int,
) -> KernelCall:
    masked = x.zero_border and not keeps_border
    if masked:
        index = np.arange(-(-x.positions // lanes) * lanes)
        inside = (index % x.pitch < x.cols) & (index < x.positions)
        constants = (*constants, inside.astype(np.float32))
    function = _pointwise(x, op, kind, other, masked, activation, low, high, lanes)
    return KernelCall(name, function, constants, x.size)


@cache
def _pointwise(
    x: Planes,
    op: BinaryOp,
    kind: _Other,
    other: Planes | None,
    masked: bool,
    activation: str,
    low: float,
    high: float,
    lanes: int,
) -> Any:
    """Arrays: x; the other operand unless `kind` is "none"; if `masked`, 1 for positions in the image, else 0; y."""
    vectors = -(-x.positions // lanes)
    parts = max(1, min(-(-16 // (x.images * x.channels)), vectors // 64))

    def body(x_array: Any, *arrays: Any) -> None:
        y = arrays[-1]

        def task(task: Any) -> None:
            part, image, channel = task % parts, task // parts % x.images, task // parts // x.images
            base = T.bind(channel * x.channel_stride + image * x.image_stride)
            clear_around(y, base, image, x, lanes, part, parts)

            def operand(at: Any) -> Any:
                if kind == "same":
                    return load(arrays[0], at, lanes)
                index = {"scalar": 0, "channel": channel}.get(kind)
                if other is not None:
                    index = channel * other.channel_stride + image
                return T.broadcast(arrays[0][index], lanes)

            with T.serial(vectors * part // parts, vectors * (part + 1) // parts) as v:
                at = base + x.lead + v * lanes
                value = load(x_array, at, lanes)
                if kind != "none":
                    value = _OPS[op](value, operand(at))
                value = T.bind(_clamp(apply(activation, value, lanes), low, high, lanes))
                if masked:
                    inside = load(arrays[-2], v * lanes, lanes) > constant(0.0, lanes)
                    value = T.Select(inside, value, constant(0.0, lanes))
                store(y, at, value, lanes)

        tasks(x.channels * x.images * parts, x.channels * x.images * x.positions, task)

    inputs = 1 + (kind != "none") + masked
    return prim_func(("float32",) * (inputs + 1), body)


_OPS: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


def _clamp(value: Any, low: float, high: float, lanes: int) -> Any:
    # The order of the arguments keeps NaN: max(low, NaN) is NaN, max(NaN, low) is low.
    if low > -math.inf:
        value = T.max(constant(low, lanes), value)
    if high < math.inf:
        value = T.min(constant(high, lanes), value)
    return value
