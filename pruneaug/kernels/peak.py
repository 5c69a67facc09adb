# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# The TVMScript decorator is untyped, and it reads the annotations of what it decorates as its own language.
"""The most multiply-adds that the CPU can do: the yardstick of the other kernels."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from tvm.script import tirx as T

from pruneaug.kernels.build import Builder, CpuTarget, Kernel
from pruneaug.kernels.call import KernelCall

_MOST_ACCUMULATORS = 24  # multiply-adds in flight: the latency, 4 or 5 cycles, times 2 or 4 a cycle
_OTHER_REGISTERS = 4  # the factor and the summand, and some to spare: a spilled accumulator would be memory
_STEPS = 200_000
_BUDGET_S = 1.0


def peak_gflops(builder: Builder) -> float:
    """GFLOP/s of float32 multiply-adds (two operations each) on registers alone, by all threads of the target."""
    call, factors = peak_call(builder.target, _STEPS)
    return 2 * call.size * _STEPS / fastest_s(builder.bound(call), factors, torch.empty(call.size)) / 1e9


def peak_call(target: CpuTarget, steps: int) -> tuple[KernelCall, torch.Tensor]:
    """The call whose every output value is `steps` multiply-adds, by all threads of the target, and its input."""
    accumulators = min(_MOST_ACCUMULATORS, target.registers - _OTHER_REGISTERS)
    size = target.threads * accumulators * target.lanes
    factors = torch.tensor([0.5, 1.0]).repeat_interleave(target.lanes)  # the sums tend to 2: no denormals
    return KernelCall("peak", multiply_adds(target.threads, accumulators, target.lanes, steps), (), size), factors


def fastest_s(kernel: Kernel, x: torch.Tensor, y: torch.Tensor) -> float:
    """Seconds of the fastest of many short runs: what disturbs a run can only make it slower."""
    fastest = float("inf")
    end = time.perf_counter() + _BUDGET_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        kernel(x, y)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


@cache
def multiply_adds(tasks: int, accumulators: int, lanes: int, steps: int) -> Any:
    """TIR: y[i] = y[i] * x[0] + x[lanes], `steps` times from y[i] = i % (accumulators * lanes), in registers.

    Arguments: x float32 [2 * lanes], each half of equal values; y float32 [tasks * accumulators * lanes].
    """
    size = accumulators * lanes

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
                acc = T.sblock_alloc_buffer((size,), "float32", scope="local")
                for a in T.unroll(accumulators):
                    acc[T.ramp(a * lanes, 1, lanes)] = T.Cast(f"float32x{lanes}", T.ramp(a * lanes, 1, lanes))
                for _ in T.serial(steps):
                    for a in T.unroll(accumulators):
                        acc[T.ramp(a * lanes, 1, lanes)] = (
                            acc[T.ramp(a * lanes, 1, lanes)] * X[T.ramp(0, 1, lanes)] + X[T.ramp(lanes, 1, lanes)]
                        )
                for a in T.unroll(accumulators):
                    Y[T.ramp(task * size + a * lanes, 1, lanes)] = acc[T.ramp(a * lanes, 1, lanes)]

    return kernel
