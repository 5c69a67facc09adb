"""Compile kernels for the machine at hand; each once a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Read once, when TVM starts its threads. Its own defaults are half of the CPUs on x86, each pinned to one, which idles
# a core where there are no hyperthreads and can put two workers on one core when another library has moved the main
# thread.
os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("TVM_BIND_THREADS", "0")

import tvm

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.layout import pad_phases, transpose
from pruneaug.kernels.spmm import spmm

Kernel = Callable[..., None]

_GENERATORS: Mapping[str, Callable[..., Any]] = {"spmm": spmm, "pad_phases": pad_phases, "transpose": transpose}


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

    def to_tvm(self) -> tvm.target.Target:
        """Raises InputError for a CPU that LLVM does not know: it would compile slow, generic code for it."""
        llvm = tvm.target.codegen
        mcpu = self.mcpu or llvm.llvm_get_system_cpu()
        if not llvm.llvm_is_valid_cpu(mcpu, machine := self.triple or llvm.llvm_get_system_triple()):
            raise InputError(
                f"a platform's mcpu must be a CPU that LLVM knows for {machine}, but got {mcpu!r}; "
                "leave it out for the machine at hand"
            )
        triple = {"mtriple": self.triple} if self.triple else {}
        return tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": self.threads, **triple})


def compile_kernel(target: CpuTarget, name: str, *args: int) -> tvm.runtime.Executable:
    """The kernel `name` ("spmm", "pad_phases" or "transpose") with its generator's arguments, as machine code.

    Raises CompileError, with TVM's own error as the cause; InputError for an unknown CPU.
    """
    tvm_target = target.to_tvm()
    try:
        return tvm.compile(_GENERATORS[name](*args), target=tvm_target)
    except Exception as error:
        raise CompileError(
            f"TVM could not compile kernel {name}{args} for {target}: {error}; this is a bug, please report it"
        ) from error


class Builder:
    """Compiles kernels for one target and keeps them. Safe to use from several threads."""

    def __init__(self, target: CpuTarget) -> None:
        self.target = target
        self._kernels: dict[tuple[Any, ...], Kernel] = {}
        self._lock = threading.Lock()
        tvm.get_global_func("runtime.config_threadpool")(1, target.threads)

    def kernel(self, name: str, *args: int) -> Kernel:
        """The callable kernel that `compile_kernel` makes. Raises what it raises."""
        key = (name, *args)
        with self._lock:
            if key not in self._kernels:
                self._kernels[key] = compile_kernel(self.target, name, *args)["main"]
            return self._kernels[key]
