# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# The TVMScript decorator is untyped, and it reads the annotations of what it decorates as its own language.
"""What one thread wrote, read by another: how far apart two cores are."""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T

from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.call import KernelCall

SECOND_CACHE = 1 << 15
"""Floats of a part, 128 KB, which the second cache of a core holds."""

THIRD_CACHE = 1 << 19
"""Floats of a part, 2 MB, which only a cache that cores share holds, if one does."""


def handover_call(target: CpuTarget, part: int = SECOND_CACHE) -> KernelCall:
    """The call by which each thread of the target copies what the next thread wrote, float32 [threads * part].

    Run it to and fro between two buffers. Cores that share no cache take some four times as long as those that do.
    """
    return KernelCall("handover", next_parts(target.threads, part, target.lanes), (), target.threads * part)


@cache
def next_parts(tasks: int, part: int, lanes: int) -> Any:
    """TIR: part t of y is part t + 1 of x, and the last one the first; float32 [tasks * part], which lanes divide."""

    @T.prim_func(s_tir=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        x_len = T.int32()
        y_len = T.int32()
        X = T.match_buffer(x, (x_len,), "float32")
        Y = T.match_buffer(y, (y_len,), "float32")
        for task in T.parallel(tasks):
            with T.sblock("task"):
                T.reads()
                T.writes()
                for i in T.serial(part // lanes):
                    Y[T.ramp(task * part + i * lanes, 1, lanes)] = X[
                        T.ramp((task + 1) % tasks * part + i * lanes, 1, lanes)
                    ]

    return kernel
