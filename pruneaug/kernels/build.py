"""Compile kernels for the machine at hand; each once a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Read once, when TVM starts its threads. Its own defaults are half of the CPUs on x86, each pinned to one, which idles
# a core where there are no hyperthreads and can put two workers on one core when another library has moved the main
# thread.
os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("TVM_BIND_THREADS", "0")
# After its last kernel a thread waits for the next one at full speed: by TVM's default for 0.1 s and more, in which it
# takes its core from whatever else the process does. This is some 2 ms, longer than any gap between two kernels.
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "5000")

import numpy as np
import numpy.typing as npt
import torch
import tvm

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.crew import make_crew, set_crew_threads
from pruneaug.kernels.once import Once

Kernel = Callable[..., None]

# LLVM's levels. Our kernels are unrolled and vectors already, and alone as fast on level 1 as on 3, in half the time.
# Operators of a network that have none are left to LLVM's vectoriser; level 3 takes a third longer for no speed.
_KERNEL_OPT_LEVEL, _NETWORK_OPT_LEVEL = 1, 2
_LARGE = 4096  # bytes; smaller constants stay in the first cache

_pool = threading.local()
"""Of the calling thread, which has a pool of threads of its own: `threads`, its size; `is_lost`, in a child process."""


def use_threads(threads: int) -> None:
    """Let kernels that the calling thread starts use so many threads.

    Raises InputError in a child process of `fork`, where kernels would wait forever for the pool that the parent had.
    """
    if getattr(_pool, "is_lost", False):
        raise InputError(
            "kernels must not run in a thread that ran some before its process was forked, for its pool of threads is "
            "gone; run them in a new thread, or start processes by 'spawn' or 'forkserver'"
        )
    if getattr(_pool, "threads", None) != threads:
        tvm.get_global_func("runtime.config_threadpool")(1, threads)  # the threads of kernels that have no crew
        set_crew_threads(threads)
        _pool.threads = threads


def _lose_pool() -> None:
    _pool.is_lost = hasattr(_pool, "threads")


os.register_at_fork(after_in_child=_lose_pool)


@dataclass(frozen=True, slots=True)
class CpuTarget:
    """What a kernel is compiled for: float32 lanes and number of a vector register, threads, LLVM's name of the CPU.

    `triple` is LLVM's name of another machine, such as "aarch64-linux-gnu"; it needs that machine's `mcpu`.
    """

    lanes: int
    registers: int
    threads: int
    mcpu: str = ""
    triple: str = ""

    def to_tvm(self, opt_level: int = _NETWORK_OPT_LEVEL) -> tvm.target.Target:
        """`opt_level` is LLVM's.

        Raises InputError for a CPU that LLVM does not know: it would compile slow, generic code for it.
        """
        llvm = tvm.target.codegen
        mcpu = self.mcpu or llvm.llvm_get_system_cpu()
        if not llvm.llvm_is_valid_cpu(mcpu, machine := self.triple or llvm.llvm_get_system_triple()):
            raise InputError(
                f"a platform's mcpu must be a CPU that LLVM knows for {machine}, but got {mcpu!r}; "
                "leave it out for the machine at hand"
            )
        triple = {"mtriple": self.triple} if self.triple else {}
        return tvm.target.Target(
            {"kind": "llvm", "mcpu": mcpu, "num-cores": self.threads, "opt-level": opt_level, **triple}
        )


def compile_function(target: CpuTarget, name: str, function: Any) -> tvm.runtime.Executable:
    """A TIR function as machine code, its symbol "main". Raises CompileError, InputError for an unknown CPU."""
    return compile_functions(target, name, {"main": function})


def compile_functions(target: CpuTarget, name: str, functions: Mapping[str, Any]) -> tvm.runtime.Executable:
    """TIR functions as machine code, by their symbols. Raises CompileError, InputError for an unknown CPU."""
    tvm_target = target.to_tvm(_KERNEL_OPT_LEVEL)
    try:
        module = tvm.IRModule({symbol: one.with_attr("global_symbol", symbol) for symbol, one in functions.items()})
        return tvm.compile(module, target=tvm_target)
    except Exception as error:
        raise CompileError(
            f"TVM could not compile kernel {name} for {target}: {error}; this is a bug, please report it"
        ) from error


class BoundKernel:
    """A compiled kernel with its constants; `large` are those of them that the first cache does not hold for long."""

    __slots__ = ("_constants", "_kernel", "large")

    def __init__(self, kernel: Kernel, constants: Sequence[Any], large: Sequence[torch.Tensor]) -> None:
        self._kernel, self._constants, self.large = kernel, constants, large

    def __call__(self, *args: Any) -> None:
        """The inputs, then the output."""
        self._kernel(*args[:-1], *self._constants, args[-1])


class Builder:
    """Compiles kernels for one target and keeps them. Safe to use from several threads."""

    def __init__(self, target: CpuTarget) -> None:
        self.target = target
        self._compiled: Once[Kernel] = Once()  # by TIR function
        make_crew()
        use_threads(target.threads)

    def run(self, call: KernelCall, *inputs: torch.Tensor) -> torch.Tensor:
        """The output of `call` on flat, contiguous inputs: float32 [call.size]. Raises CompileError."""
        y = torch.empty(call.size)
        self.bound(call)(*inputs, y)
        return y

    def bound(self, call: KernelCall) -> BoundKernel:
        """The compiled kernel of `call` with its constants: takes the inputs and the output. Raises CompileError."""
        return self.bound_copies(call, 1)[0]

    def bound_copies(self, call: KernelCall, copies: int) -> list[BoundKernel]:
        """`bound` several times, each with its large constants in a place of their own."""
        kernel = self._kernel(call)
        large = [index for index, array in enumerate(call.constants) if is_large(array)]
        shared = [None if index in large else memory(_copied(array)) for index, array in enumerate(call.constants)]
        bound = []
        for _ in range(copies):
            own = {index: _copied(call.constants[index]) for index in large}
            constants = [memory(own[index]) if index in own else one for index, one in enumerate(shared)]
            bound.append(BoundKernel(kernel, constants, list(own.values())))
        return bound

    def _kernel(self, call: KernelCall) -> Kernel:
        return self._compiled.get(
            call.function, lambda: compile_function(self.target, call.name, call.function)["main"]
        )


def is_large(array: npt.NDArray[Any]) -> bool:
    """Whether the first cache does not hold the constant for long."""
    return array.nbytes > _LARGE


def _copied(array: npt.NDArray[Any]) -> torch.Tensor:
    """By one thread, whatever PyTorch's number of them: their pool would spin while kernels are timed."""
    copy = torch.empty_like(torch.from_numpy(array))
    np.copyto(copy.numpy(), array)
    return copy


def memory(x: torch.Tensor) -> Any:
    """The tensor as TVM's own, which kernels take about 2 microseconds faster; they share memory.

    Vector loads assume that it starts at a cache line, as memory that PyTorch allocates does.
    """
    return tvm.runtime.from_dlpack(x)
