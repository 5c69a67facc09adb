"""Compiling many kernels before a GPU is needed, in processes of their own: this one imports no compiler."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec

from pruneaug.errors import CompileError, InputError
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.shapes import Shape, parse_shape
from pruneaug.kernels.cuda.target import CudaTarget


def compile_ahead(
    shapes: Sequence[Shape],
    arch: str,
    folder: ProgramFolder,
    *,
    workers: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, str]:
    """Compile those of the shapes that the folder lacks; the error of each key that could not be compiled.

    `workers` processes, one for each CPU if None. `progress` gets how many are done, how many there are, and the last.
    Raises InputError for an unknown architecture, or if anything must be compiled and TVM or NVRTC is not installed.
    """
    CudaTarget(arch)
    lacking = folder.missing(shapes, arch)
    if not lacking:
        return {}
    if find_spec("tvm") is None:
        raise InputError(f"{len(lacking)} kernels must be compiled by TVM; pip install 'pruneaug[tvm,gpu]'")
    count = min(len(lacking), workers or os.cpu_count() or 1)
    failed: dict[str, str] = {}
    # Spawned, not forked: a fork of a process with threads of PyTorch may hang.
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        keys = {pool.submit(_compile, shape.key, arch, folder): shape.key for shape in lacking}
        for done, future in enumerate(as_completed(keys), 1):
            if error := future.result():
                failed[keys[future]] = error
            if progress is not None:
                progress(done, len(keys), keys[future])
    return failed


def _compile(key: str, arch: str, folder: ProgramFolder) -> str | None:
    """The error if it cannot be compiled."""
    from pruneaug.kernels.cuda.compiler import compile_program

    try:
        folder.write(compile_program(parse_shape(key), CudaTarget(arch)))
    except CompileError as error:
        return str(error)
    return None
