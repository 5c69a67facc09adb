"""Kernels for another machine: shared libraries, built here by a C compiler for it, that are loaded there.

A library holds, beside kernels, functions that read the machine's files and that time kernels where they run
(`driver.c`): only the machine's own time counts, and none of the way to it.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import tvm_ffi
from tvm.runtime import Executable

from pruneaug.errors import CompileError, DeviceError
from pruneaug.kernels.build import CpuTarget, compile_functions
from pruneaug.kernels.call import KernelCall
from pruneaug.kernels.once import Once

_DRIVER = Path(__file__).parent / "driver.c"
_OTHER = "{arch}-linux-gnu-gcc"
_MOST_STEPS = 2  # of a chain, in driver.c

Link = Callable[..., None]


def find_compiler(arch: str, asked: str | None) -> list[str]:
    """The command of a C compiler for machines of this architecture: `asked`, or the usual one.

    Raises DeviceError if it is not installed.
    """
    usual = os.environ.get("CC", "cc") if arch == platform.machine() else _OTHER.format(arch=arch)
    command = shlex.split(asked or usual)
    if not command or shutil.which(command[0]) is None:
        raise DeviceError(
            f"platform.remote.compiler must be an installed C compiler for {arch}, but {asked or usual!r} is not "
            f"found; install it (Debian and Ubuntu: gcc-{arch.replace('_', '-')}-linux-gnu), or name another, such as "
            f"'zig cc -target {arch}-linux-gnu'"
        )
    return command


def linked_by(command: Sequence[str]) -> Link:
    """What TVM's `export_library` links a shared library with. Raises CompileError."""

    def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: Any) -> None:
        _run([*command, "-shared", "-fPIC", "-O2", "-o", output, *objects, *(options or ()), "-lm"])

    return link


class Libraries:
    """Builds libraries of kernels for one target, each once. Safe to use from several threads."""

    def __init__(self, target: CpuTarget, compiler: str | None = None) -> None:
        """Raises DeviceError if there is no C compiler for the target."""
        self.target = target
        self._command = find_compiler(target.triple.partition("-")[0], compiler)
        self._folder = tempfile.TemporaryDirectory(prefix="pruneaug-")
        self._numbers = count()  # one for each attempt: a failed one may leave files
        self._built: Once[Path] = Once()  # by TIR functions

    def facts(self) -> Path:
        """A library without kernels, which reads files. Raises CompileError."""
        return self._built.get((), self._build_reader)

    def chain(self, calls: Sequence[KernelCall]) -> Path:
        """The library that runs these calls one after the other. Raises CompileError."""
        if len(calls) > _MOST_STEPS:
            raise CompileError(f"an op must be at most {_MOST_STEPS} kernels, but has {len(calls)}; please report it")
        return self._built.get(tuple(call.function for call in calls), lambda: self._build_chain(calls))

    def _build_reader(self) -> Path:
        path = self._new_path()
        _run([*self._compile, "-shared", "-o", str(path), str(_DRIVER)])
        return path

    def _build_chain(self, calls: Sequence[KernelCall]) -> Path:
        path = self._new_path()
        driver = path.with_suffix(".driver.o")
        _run([*self._compile, "-DKERNELS", "-c", "-o", str(driver), str(_DRIVER)])
        functions = {f"step{index}": call.function for index, call in enumerate(calls)}
        executable: Executable = compile_functions(self.target, calls[-1].name, functions)
        executable.export_library(str(path), fcompile=linked_by(self._command), addons=[str(driver)])
        return path

    def _new_path(self) -> Path:
        return Path(self._folder.name) / f"library{next(self._numbers)}.so"

    @property
    def _compile(self) -> list[str]:
        includes = {tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()}
        return [*self._command, "-O2", "-fPIC", *(f"-I{folder}" for folder in sorted(includes))]


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompileError(
            f"a C compiler must start, but {command[0]} does not: {error}; check that it runs"
        ) from error
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split())[-1000:]
        raise CompileError(
            f"the C compiler for the device must build a shared library, but {shlex.join(command[:3])} ... ends with: "
            f"{words}; check platform.remote.compiler, and that the C library for the device is installed with it"
        )
