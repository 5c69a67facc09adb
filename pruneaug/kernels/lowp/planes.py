"""Planes of words: where the activations of a layer in reduced precision lie, and which layers have them."""

from __future__ import annotations

from dataclasses import replace

from pruneaug.errors import CompileError
from pruneaug.kernels.layouts import Layouts
from pruneaug.kernels.planes import Planes, token_planes
from pruneaug.network.ops import LinearOp, Op


def unsupported(op: Op, lanes: int) -> str | None:
    """Why there is no kernel in reduced precision for this op; None if there is one."""
    if isinstance(op, LinearOp):
        return "it has only one token" if op.tokens == 1 else None
    if op.groups > 1:
        return f"it has {op.groups} groups"
    if op.stride != (1, 1):
        return f"its stride is {op.stride[0]}x{op.stride[1]}"
    return None if Layouts([op], lanes).reads_in_place(op) else "its output is wider than its input"


def layer_planes(op: Op, x_per_word: int, y_per_word: int, lanes: int) -> tuple[Planes, Planes]:
    """The planes of the op's input and output, in words of so many channels each; 1 for float32.

    Raises CompileError for an op that is not supported.
    """
    if reason := unsupported(op, lanes):
        raise CompileError(f"{op.key} has no kernel in reduced precision: {reason}; compute it in float32")
    if isinstance(op, LinearOp):
        x, y = (token_planes(1, channels, op.tokens, lanes) for channels in (op.in_features, op.out_features))
    else:
        layouts = Layouts([op], lanes)
        x, y = layouts.input(op), layouts.output(op)
    return (
        replace(x, channels=-(-x.channels // x_per_word)),
        replace(y, channels=-(-y.channels // y_per_word)),
    )
