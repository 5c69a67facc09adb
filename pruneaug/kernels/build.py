"""Compile kernels for the machine at hand; each once a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Read once, when TVM starts its threads. Its own defaults are half of the CPUs on x86, each pinned to one, which idles a core
# where there are no hyperthreads and can put two workers on one core when another library has moved the main thread.
os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("TVM_BIND_THREADS", "0")

import tvm

from pruneaug.errors import CompileError
from pruneaug.kernels.layout import pad_phases, transpose
from pruneaug.kernels.spmm import spmm

Kernel = Callable[..., None]

_GENERATORS: Mapping[str, Callable[..., Any]] = {"spmm": spmm, "pad_phases": pad_phases, "transpose": transpose}


@dataclass(frozen=True, slots=True)
class CpuTarget:
    """What a kernel is compiled for: float32 lanes and number of a vector register, threads, LLVM's name of the CPU."""

    lanes: int
    registers: int
    threads: int
    mcpu: str = ""

    def to_tvm(self) -> tvm.target.Target:
        mcpu = self.mcpu or tvm.target.codegen.llvm_get_system_cpu()
        return tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": self.threads})


class Builder:
    """Compiles kernels for one target and keeps them. Safe to use from several threads."""

    def __init__(self, target: CpuTarget) -> None:
        self.target = target
        self._kernels: dict[tuple[Any, ...], Kernel] = {}
        self._lock = threading.Lock()
        tvm.get_global_func("runtime.config_threadpool")(1, target.threads)

    def kernel(self, name: str, *args: int) -> Kernel:
        """The compiled kernel `name` ("spmm", "pad_phases" or "transpose") with its generator's arguments.

        Raises CompileError, with TVM's own error as the cause.
        """
        key = (name, *args)
        with self._lock:
            if key not in self._kernels:
                try:
                    self._kernels[key] = tvm.compile(_GENERATORS[name](*args), target=self.target.to_tvm())["main"]
                except Exception as error:
                    raise CompileError(
                        f"TVM could not compile kernel {name}{args} for {self.target}: {error}; this is a bug, please report it"
                    ) from error
            return self._kernels[key]
