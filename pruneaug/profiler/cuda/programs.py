"""Whether the kernels that are to be measured are compiled, and compiling those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from pruneaug.errors import CompileError
from pruneaug.kernels.cuda.ahead import compile_ahead
from pruneaug.kernels.cuda.program import Program, ProgramFolder
from pruneaug.kernels.cuda.shapes import Shape
from pruneaug.profiler.cuda.run import Progress


def compile_missing(
    shapes: Sequence[Shape], arch: str, folder: ProgramFolder, progress: Progress | None = None
) -> tuple[set[str], list[str]]:
    """The keys of the kernels that there are not, and what to say of them. What the folder lacks is compiled, if TVM is
    installed.

    Raises InputError for an architecture that these kernels are not written for, or without NVRTC.
    """
    missing = {shape.key for shape in folder.missing(shapes, arch)}
    if not missing:
        return set(), []
    if find_spec("tvm"):
        failed = compile_ahead(shapes, arch, folder, progress=progress)
        return set(failed), [f"{key} is not measured: {error}" for key, error in failed.items()]
    return missing, [
        f"{len(missing)} kernels are not measured: {folder.path} lacks them for {arch} and this version of pruneaug, "
        f"and TVM is not installed here; compile them with --compile-for {arch} where it is"
    ]


def compiled_programs(
    shapes: Sequence[Shape], arch: str, folder: ProgramFolder, progress: Progress | None = None
) -> list[Program]:
    """The kernels of these shapes; the folder gets those that it lacks. Raises CompileError, InputError without TVM."""
    failed = compile_ahead(shapes, arch, folder, progress=progress)
    for key, error in failed.items():
        raise CompileError(f"the kernel {key} must compile for {arch}, but {error}")
    return [folder.read(shape, arch) for shape in shapes]
