"""CUDA kernels as source and as machine code, on a machine with or without a GPU."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tvm

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.cuda.program import Program, parameters_of
from pruneaug.kernels.cuda.shapes import Shape
from pruneaug.kernels.cuda.spmm import cuda_spmm
from pruneaug.kernels.cuda.target import CudaTarget

_USED = re.compile(r"Used (\d+) registers")
_SPILLED = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True, slots=True, eq=False)
class MachineCode:
    """A kernel for one architecture, and what the assembler said of it."""

    cubin: bytes
    registers: int  # of a thread
    spilled_bytes: int  # of a thread, what lies in memory instead of registers
    log: str  # of the compiler, its warnings among it


def build(function: Any, target: CudaTarget) -> tvm.runtime.Executable:
    """A TIR function with its host code, its symbol "main". Raises CompileError."""
    try:
        return tvm.compile(function.with_attr("global_symbol", "main"), target=target.tvm, tir_pipeline="tirx")
    except Exception as error:
        raise CompileError(
            f"TVM could not make a CUDA kernel for {target.arch}: {error}; this is a bug, please report it"
        ) from error


def cuda_source(function: Any, target: CudaTarget) -> str:
    """The CUDA C++ of a TIR function, as a compiler gets it. Raises CompileError."""
    return str(build(function, target).mod.imports[0].inspect_source("cuda"))


def compile_program(shape: Shape, target: CudaTarget) -> Program:
    """The kernel of a shape, ready to be launched.

    Raises InputError where NVRTC is not installed, CompileError if it does not fit the architecture.
    """
    shape.variant.check(target, shape.form)
    source = cuda_source(cuda_spmm(shape), target)
    code = assemble(source, target)
    return Program(shape, target.arch, parameters_of(source), code.registers, code.spilled_bytes, code.cubin)


def assemble(source: str, target: CudaTarget) -> MachineCode:
    """Machine code of CUDA C++ by NVRTC, which needs no GPU and no CUDA toolkit.

    Raises InputError where NVRTC is not installed, CompileError if it refuses the source.
    """
    nvrtc = _nvrtc()
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, None, None))
    headers = Path(_headers().name)
    options = [f"--gpu-architecture={target.arch}", f"-I{headers}", f"-I{headers / 'cccl'}"]
    options += ["-default-device", "--ptxas-options=-v"]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
    nvrtc.nvrtcGetProgramLog(program, log)
    said = log.decode(errors="replace").rstrip("\0")
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"NVRTC must take the source of a kernel, but said: {said}; this is a bug, please report it")
    cubin = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(program)
    used, spilled = _USED.search(said), _SPILLED.search(said)
    if not used or not spilled:
        raise CompileError(f"NVRTC must tell the registers of a kernel, but said: {said!r}; this is a bug, report it")
    return MachineCode(bytes(cubin), int(used[1]), sum(map(int, spilled.groups())), said)


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise InputError(f"CUDA kernels are compiled by NVRTC, but {error}; pip install 'pruneaug[gpu]'") from error
    return nvrtc


@cache
def _headers() -> tempfile.TemporaryDirectory[str]:
    """A folder with CUDA's headers, which NVRTC brings along; it is removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="pruneaug-cuda-")
    _checked(_nvrtc().nvrtcInstallBundledHeaders(folder.name.encode(), 0))
    return folder


def _checked(answer: tuple[Any, ...]) -> Any:
    """What an NVRTC function returns behind its status."""
    status, *values = answer
    if int(status):
        raise CompileError(f"NVRTC must answer, but failed with {status!r}; check the installation of 'pruneaug[gpu]'")
    return values[0] if values else None
