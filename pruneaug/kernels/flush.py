# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# The TVMScript decorator is untyped, and it reads the annotations of what it decorates as its own language.
"""Driving memory from all caches, on CPUs that have an instruction for it."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from tvm.script import tirx as T

from pruneaug.kernels.build import CpuTarget
from pruneaug.kernels.call import KernelCall

_LINE = 16  # float32 values of a cache line, 64 bytes on every x86 CPU
_FLUSH = "llvm.x86.sse2.clflush"


def can_flush(target: CpuTarget) -> bool:
    """Whether the target's CPU has the instruction."""
    return (target.triple or tvm.target.codegen.llvm_get_system_triple()).startswith("x86_64")


def flush_call(target: CpuTarget) -> KernelCall:
    """The call that takes an array, float32 of any length, from all caches of all cores; its values stay."""
    return KernelCall("flush", flush_lines(target.threads), (), 0)


@cache
def flush_lines(tasks: int) -> Any:
    """TIR: flush every cache line of x, by so many tasks."""

    @T.prim_func(s_tir=True)
    def kernel(x: T.handle):
        T.func_attr({"tirx.noalias": True})
        x_len = T.int32()
        X = T.match_buffer(x, (x_len,), "float32")
        for task in T.parallel(tasks):
            with T.sblock("task"):
                T.reads()
                T.writes()
                lines = T.bind((x_len + _LINE - 1) // _LINE)
                for line in T.serial(lines * task // tasks, lines * (task + 1) // tasks):
                    T.evaluate(T.call_llvm_intrin("void", _FLUSH, T.address_of(X[line * _LINE])))

    return kernel
