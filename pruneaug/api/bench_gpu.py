"""The verb `bench kernels` on an NVIDIA GPU: our kernels in turns with dense libraries; no latency table changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneaug.api.bench_choices import check_patterns, check_sparsity, fits, matrix_size
from pruneaug.api.job import Progress, stage
from pruneaug.errors import InputError
from pruneaug.kernels.cuda.ahead import compile_ahead
from pruneaug.kernels.cuda.formats import FORMATS
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.shapes import COLUMNS, ROWS
from pruneaug.kernels.cuda.variants import TORCH
from pruneaug.latency.break_even import break_even
from pruneaug.latency.records import LatencyRecord
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.network.ops import Op, parse_op
from pruneaug.platforms.cuda import gpu_platform
from pruneaug.profiler.cuda.cases import (
    LIBRARIES,
    Group,
    Subject,
    groups_of,
    has_kernels,
    layout_of,
    shapes_of,
    subjects_of,
)
from pruneaug.profiler.cuda.process import BUDGET_S, DEVICE, TIMEOUT_S, GpuProcess
from pruneaug.profiler.cuda.programs import compile_missing
from pruneaug.profiler.cuda.records import GpuRecord, Journal, by_speed, warnings_of
from pruneaug.profiler.cuda.run import profile_groups
from pruneaug.registry import did_you_mean


def compile_gpu_kernels(
    ops: Sequence[Op | str],
    *,
    patterns: Sequence[str],
    dtypes: Sequence[str],
    arch: str,
    kernels: str | Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compile what is measured of these layers into the folder `kernels`; no GPU is needed.

    Returns `arch`, `kernels` with how many there are, and `failed` with the error of each that could not be compiled.
    Raises InputError for a wrong op, pattern, dtype or architecture.
    """
    layers, _ = _checked(ops, (), dtypes)
    groups = groups_of(layers, dtypes, check_patterns(patterns, nm=True), (0.0,))
    shapes = list(dict.fromkeys(shape for group in groups for shape in shapes_of(group, arch=arch)))
    failed = compile_ahead(shapes, arch, ProgramFolder(Path(kernels)), progress=stage(progress, "Compile"))
    return {"arch": arch, "kernels": len(shapes) - len(failed), "failed": failed}


def bench_gpu_kernels(
    ops: Sequence[Op | str],
    *,
    kernels: str | Path,
    records: str | Path,
    patterns: Sequence[str] = ("block:64x64",),
    sparsities: Sequence[float] = (0.9,),
    dtypes: Sequence[str] = ("bfloat16",),
    against: Sequence[str] = (TORCH,),
    timeout_s: float = TIMEOUT_S,
    budget_s: float = BUDGET_S,
    index: int = 0,
    device: str = DEVICE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure layers on the GPU `index`: dense, and in every pattern at every sparsity.

    `kernels` is a folder of `compile_gpu_kernels`; what it lacks is compiled if TVM is installed, else left out with a
    warning. `records` is a file to which every time is appended; what it has already is not measured again. `against`
    are names of `LIBRARIES`. A kernel that hangs is ended after `timeout_s`; rounds of a group last about `budget_s`.

    Returns what `pruneaug bench kernels --device cuda --json` prints: `platform`, `gpu`, `versions`, `groups`,
    `break_even`, `skipped`, `warnings`. Raises InputError for a wrong op, pattern, sparsity, dtype or library, or
    without a GPU, MeasurementError if the measuring process does not start.
    """
    layers, skipped = _checked(ops, sparsities, dtypes)
    _check_libraries(against)
    blocks, folder = check_patterns(patterns), ProgramFolder(Path(kernels))
    groups = groups_of(layers, dtypes, blocks, sparsities)
    with GpuProcess(folder.path, timeout_s=timeout_s, budget_s=budget_s, device=device, index=index) as process:
        gpu = process.gpu()
        shapes = [shape for group in groups for shape in shapes_of(group, arch=gpu.arch)]
        lacking, warnings = compile_missing(shapes, gpu.arch, folder, stage(progress, "Compile"))
        subjects = {
            group: [subject for subject in subjects_of(group, against, arch=gpu.arch) if subject.variant not in lacking]
            for group in groups
        }
        subjects = {group: some for group, some in subjects.items() if some}
        found = profile_groups(subjects, process, Journal(Path(records)), gpu.name, stage(progress, "Kernels"))
    platforms = [gpu_platform(gpu, dtype=dtype) for dtype in dtypes]
    return {
        "platform": {platform.dtype: platform.name for platform in platforms},
        "gpu": gpu.to_json(),
        "versions": dict(platforms[0].versions),
        "groups": [_summary(group, rows) for group, rows in found.items()],
        "break_even": {dtype: _break_even(dtype, found) for dtype in dtypes},
        "skipped": skipped
        + [
            {"op": op.key, "pattern": pattern, "reason": f"its weight matrix is only {matrix_size(op)}"}
            for op in layers
            for pattern in blocks
            if not fits(op, pattern)
        ],
        "warnings": warnings + warnings_of([row for rows in found.values() for row in rows]),
    }


def _checked(
    ops: Sequence[Op | str], sparsities: Sequence[float], dtypes: Sequence[str]
) -> tuple[list[Op], list[dict[str, str]]]:
    """The layers that our kernels compute, and why the others are left out. Raises InputError."""
    found = list(dict.fromkeys(parse_op(op) if isinstance(op, str) else op for op in ops))
    layers = [op for op in found if has_kernels(op)]
    for sparsity in sparsities:
        check_sparsity(sparsity)
    if unknown := [dtype for dtype in dtypes if dtype not in FORMATS]:
        raise InputError(
            f"`dtype` on a GPU must be one of {', '.join(FORMATS)}, but got {unknown[0]!r}"
            f"{did_you_mean(unknown[0], FORMATS)}"
        )
    if not layers or not dtypes:
        raise InputError(
            "a GPU needs a linear layer or a convolution of one group, and a dtype, but got none; name an op such as "
            "linear-t8192-i4096-o4096, and a dtype such as bfloat16"
        )
    reason = "convolutions of several groups have no kernel on a GPU"
    return layers, [{"op": op.key, "pattern": "all", "reason": reason} for op in found if not has_kernels(op)]


def _check_libraries(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in LIBRARIES]:
        raise InputError(
            f"`against` must name libraries of {', '.join(LIBRARIES)} on a GPU, but got {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], LIBRARIES)}"
        )


def _summary(group: Group, rows: Sequence[GpuRecord]) -> dict[str, Any]:
    """The rows of a group, the fastest of our kernels, and how it compares with the dense library in the same turns.

    `best` is the fastest of all, `layouts` the fastest of each layout of the inputs and outputs.
    """
    dense = _dense(rows)
    layouts = {layout: [row for row in rows if layout_of(row.subject) == layout] for layout in (ROWS, COLUMNS)}
    return {
        **group.to_json(),
        "torch_us": None if dense is None else dense.latency_us,
        "best": _fastest(rows, dense),
        "layouts": {layout: _fastest(some, dense) for layout, some in layouts.items()},
        "kernels": [{**record.to_json(), "tflops": _tflops(record)} for record in rows],
    }


def _best(rows: Sequence[GpuRecord]) -> GpuRecord | None:
    ours = by_speed(row for row in rows if row.subject.library == RUNTIME_LIBRARY)
    return ours[0] if ours else None


def _dense(rows: Sequence[GpuRecord]) -> GpuRecord | None:
    """What the dense library took in the turns of this group."""
    return next((row for row in rows if row.subject == Subject(TORCH) and row.error is None), None)


def _fastest(rows: Sequence[GpuRecord], dense: GpuRecord | None) -> dict[str, Any] | None:
    best = _best(rows)
    if best is None:
        return None
    ratio = _ratio(best, dense)
    return {
        "variant": best.subject.variant,
        "latency_us": best.latency_us,
        "speedup_vs_torch": None if ratio is None else 1 / ratio,
        "max_relative_error": best.max_relative_error,
    }


def _ratio(best: GpuRecord | None, dense: GpuRecord | None) -> float | None:
    """The time of one of our kernels in units of the dense library's in the same turns."""
    if best is None or dense is None or best.latency_us is None or dense.latency_us is None:
        return None
    return best.latency_us / dense.latency_us


def _tflops(record: GpuRecord) -> float | None:
    """Of the multiply-adds of the weights that are kept, two operations each."""
    if record.latency_us is None or record.zeros is None:
        return None
    return 2 * record.group.op.macs * (1 - record.zeros) / record.latency_us / 1e6


def _break_even(dtype: str, found: Mapping[Group, Sequence[GpuRecord]]) -> dict[str, Any]:
    """For each pattern the sparsity from which the fastest of our kernels beats the dense library, and both dense ones.

    Times are in units of the dense library's in the same turns: a GPU's clocks differ from one minute to the next.
    """
    times = []
    for group, rows in found.items():
        ratio = _ratio(_best(rows), _dense(rows))
        if group.dtype != dtype or ratio is None:
            continue
        times.append(_relative(group, RUNTIME_LIBRARY, ratio))
        times.append(_relative(Group(group.op, dtype, "dense", 0.0), TORCH, 1.0))
    return {
        pattern: {"ops": even.ops, "against_torch": even.against_libraries, "against_all": even.against_all}
        for pattern, even in break_even(times).items()
    }


def _relative(group: Group, library: str, ratio: float) -> LatencyRecord:
    return LatencyRecord(
        group.op, group.pattern, group.sparsity, library, "", group.dtype, 1, ratio, ratio, ratio, 1, 0.0, ""
    )
