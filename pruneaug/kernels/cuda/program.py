"""Compiled kernels, and the folder in which they travel to a machine with a GPU and without a compiler."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pruneaug.errors import CompileError
from pruneaug.files import atomic_write_bytes, atomic_write_text
from pruneaug.kernels.cuda.shapes import Shape

ENTRY = "main_kernel"
POINTER, INT32, FLOAT32 = "pointer", "int32", "float32"
_SIGNATURE = re.compile(r'extern "C" __global__ void __launch_bounds__\(\d+\) main_kernel\((.*?)\) \{')
_KINDS = {"int": INT32, "float": FLOAT32}
_HOST = ("__init__.py", "ahead.py", "driver.py")  # which only call compilers, and load what they have made
_GENERATOR = (
    *sorted(path for path in Path(__file__).parent.glob("*.py") if path.name not in _HOST),
    Path(__file__).parents[1] / "functions.py",
)


@dataclass(frozen=True, slots=True)
class Program:
    """Machine code of the kernel of one shape, for one architecture."""

    shape: Shape
    arch: str
    parameters: tuple[tuple[str, str], ...]  # name and POINTER, INT32 or FLOAT32, in the order that the code takes them
    registers: int  # of a thread
    spilled_bytes: int  # of a thread
    cubin: bytes = field(repr=False)


def parameters_of(source: str) -> tuple[tuple[str, str], ...]:
    """`Program.parameters` of CUDA C++. What a kernel never reads is none of them.

    Raises CompileError for a source without the kernel.
    """
    match = _SIGNATURE.search(source)
    if not match:
        raise CompileError(f"the source of a kernel must define {ENTRY}, but it does not; this is a bug, report it")
    pairs = [parameter.rsplit(" ", 1) for parameter in match[1].split(", ")]
    return tuple(
        (name.removesuffix("_ptr"), POINTER) if "*" in kind else (name, _KINDS[kind.strip()]) for kind, name in pairs
    )


@dataclass(frozen=True, slots=True)
class ProgramFolder:
    """Programs by shape and architecture: KEY.ARCH.cubin, and KEY.ARCH.json that tells how it is called.

    A program is of use only to the version of this package that generated and packs for it.
    """

    path: Path

    def write(self, program: Program) -> None:
        """Keep a program, in place of another of its shape. Raises StorageError."""
        cubin, facts = self.files(program.shape, program.arch)
        atomic_write_bytes(cubin, program.cubin)
        known = {
            "generator": generator_digest(),
            "parameters": program.parameters,
            "registers": program.registers,
            "spilled_bytes": program.spilled_bytes,
        }
        atomic_write_text(facts, json.dumps(known, indent=1) + "\n")

    def read(self, shape: Shape, arch: str) -> Program:
        """Raises CompileError if the folder has none, or one that another version of the package made."""
        cubin, facts = self.files(shape, arch)
        if not facts.exists() or not cubin.exists():
            raise CompileError(
                f"the kernel {shape.key} must be compiled for {arch}, but {self.path} does not hold it; compile the "
                f"same layers with --compile-for {arch} where TVM and NVRTC are installed"
            )
        known = json.loads(facts.read_text(encoding="utf-8"))
        if known["generator"] != generator_digest():
            raise CompileError(
                f"the kernel {shape.key} must come from this version of pruneaug, but {facts} is of another; "
                f"compile the same layers again with --compile-for {arch}"
            )
        parameters = tuple((str(name), str(kind)) for name, kind in known["parameters"])
        return Program(shape, arch, parameters, known["registers"], known["spilled_bytes"], cubin.read_bytes())

    def missing(self, shapes: Iterable[Shape], arch: str) -> list[Shape]:
        """Those of the shapes that `read` refuses, each once."""
        return [shape for shape in dict.fromkeys(shapes) if not self._holds(shape, arch)]

    def _holds(self, shape: Shape, arch: str) -> bool:
        try:
            self.read(shape, arch)
        except CompileError:
            return False
        return True

    def files(self, shape: Shape, arch: str) -> tuple[Path, Path]:
        """Where its machine code is, and what tells how it is called, if the folder holds them."""
        stem = f"{shape.key}.{arch}"
        return self.path / f"{stem}.cubin", self.path / f"{stem}.json"


@cache
def generator_digest() -> str:
    """12 hexadecimal digits of the text of the modules that generate kernels and pack weights for them."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in _GENERATOR)).hexdigest()[:12]
