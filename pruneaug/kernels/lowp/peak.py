"""The most dot products of words that the CPU can do, as `pruneaug.kernels.peak` has it for float32."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tvm.script import tirx as T

from pruneaug.kernels.build import Builder
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.lowp.dot import dot, instructions
from pruneaug.kernels.lowp.formats import Format
from pruneaug.kernels.peak import fastest_s
from pruneaug.kernels.tiles import Tile
from pruneaug.kernels.vectors import load, prim_func, store

_MOST_SUMS = 24  # dot products in flight: the latency, 4 to 6 cycles, times 2 a cycle
_OTHER_REGISTERS = 4
_STEPS = 100_000


def peak_gops(builder: Builder, form: Format) -> float:
    """1e9 multiplications and additions a second on registers alone, by all threads of the target."""
    target = builder.target
    sums = min(_MOST_SUMS, target.registers - _OTHER_REGISTERS)
    size = target.threads * sums * target.lanes
    call = KernelCall("peak", dot_products(form, target.threads, sums, target.lanes, _STEPS), (), size)
    kernel = builder.bound(call)
    words = torch.zeros(2 * target.lanes, dtype=torch.int32)
    out = torch.empty(size, dtype=getattr(torch, form.accumulator))
    return 2 * form.per_word * size * _STEPS / fastest_s(kernel, words, out) / 1e9


@cache
def dot_products(form: Format, tasks: int, sums: int, lanes: int, steps: int) -> Any:
    """TIR: y[i] = `steps` times the dot product of two words, in registers.

    Arguments: x int32 [2 * lanes], the words; y float32 or int32 [tasks * sums * lanes].
    """

    def body(x: Any, y: Any) -> None:
        with T.parallel(tasks) as task, T.sblock("task"):
            T.reads()
            T.writes()
            with instructions(lanes):
                acc = Tile(1, sums, lanes, form.accumulator)
                left, right = (T.bind(load(x, half * lanes, lanes)) for half in range(2))
                zero = T.float32(0) if form.accumulator == "float32" else T.int32(0)
                for vector in range(sums):
                    acc[0, vector] = T.broadcast(zero, lanes)
                with T.serial(steps):
                    for vector in range(sums):
                        acc[0, vector] = dot(form, acc[0, vector], right, left, lanes, native=True)
                for vector in range(sums):
                    store(y, (task * sums + vector) * lanes, acc[0, vector], lanes)

    return prim_func(["int32", form.accumulator], body)
