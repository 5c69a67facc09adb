"""What the commands print and ask of a GPU: `bench --device cuda`, and `--compile-for`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pruneaug.api.bench_gpu import bench_gpu_kernels, compile_gpu_kernels
from pruneaug.api.bench_gpu_network import bench_gpu_network, compile_gpu_network
from pruneaug.cli.output import console, print_json
from pruneaug.cli.tables import bench_table
from pruneaug.errors import InputError
from pruneaug.profiler.gpu_networks import GPU_RUNTIMES
from pruneaug.report import Progress
from pruneaug.spec.platform import gpu_number

_WORDS = ("pattern", "by", "kernel")


def gpu_of(device: str, threads: int | None, compile_for: str | None) -> int | None:
    """The number of the GPU; None: the CPU.

    Raises InputError for a device that is none, and for options of the other kind.
    """
    try:
        index = gpu_number(device)
    except ValueError as error:
        raise InputError(f"--device: {error}; choose one") from None
    if index is not None and threads is not None:
        raise InputError(f"--threads is for the CPU, but got --threads {threads} with --device {device}; leave it out")
    if index is None and compile_for is not None:
        raise InputError(f"--compile-for is for a GPU, but got it with --device {device}; add --device cuda")
    return index


def run_on_gpu(
    ops: Sequence[Any],
    *,
    patterns: Sequence[str],
    dtypes: Sequence[str],
    kernels: str,
    compile_for: str | None,
    as_json: bool,
    **measured: Any,
) -> None:
    """Measure the layers, or only compile for `compile_for`, and print; `measured` is what only the former needs."""
    common: dict[str, Any] = {"patterns": patterns, "dtypes": dtypes, "kernels": kernels}
    with Progress() as progress:
        common["progress"] = progress.update
        if compile_for is None:
            result = bench_gpu_kernels(ops, **common, **measured)
        else:
            result = compile_gpu_kernels(ops, arch=compile_for, **common)
    if compile_for is not None:
        compiled_summary(result, kernels, as_json)
    else:
        print_json(result) if as_json else console().print(gpu_table(result))


def compiled_summary(result: Mapping[str, Any], folder: str, as_json: bool) -> None:
    """Print how many kernels there are in a folder now, and which could not be compiled."""
    if as_json:
        print_json(result)
        return
    lines = [f"{result['kernels']} kernels for {result['arch']} in {folder}"]
    console().print(Text("\n".join(lines + [f"failed: {key}: {error}" for key, error in result["failed"].items()])))


def run_network_on_gpu(
    name: str,
    *,
    compile_for: str | None,
    against: Sequence[str] | None,
    rounds: int,
    index: int,
    as_json: bool,
    **common: Any,
) -> None:
    """Measure a network, or only compile its kernels for `compile_for`, and print."""
    with Progress() as progress:
        common["progress"] = progress.update
        if compile_for is None:
            rivals = GPU_RUNTIMES if against is None else against
            result = bench_gpu_network(name, against=rivals, rounds=rounds, index=index, **common)
        else:
            result = compile_gpu_network(name, compile_for, **common)
    if compile_for is not None:
        compiled_summary(result, common["kernels"], as_json)
    elif as_json:
        print_json(result)
    else:
        console().print(Group(bench_table(result), network_facts(result)))


def network_facts(result: Mapping[str, Any]) -> RenderableType:
    """The GPU and its clocks, and the layers that are pruned and PyTorch's all the same."""
    states = [result["state"][when] for when in ("before", "during")]
    facts, clocks = result["gpu"], [state and state["sm_mhz"] for state in states]
    at = ", ".join("unknown" if clock is None else f"{clock:.0f} MHz" for clock in clocks)
    ours = sum(layer["kernel"] is not None for layer in result["layers"])
    lines = [
        f"{facts['name']} ({facts['arch']}), driver {facts['driver']}, {result['dtype']}",
        f"clocks before and, at least, during the rounds: {at}",
        f"{ours} of {len(result['layers'])} layers by our kernels",
    ]
    lines += [f"PyTorch's: {layer['name']}: {layer['reason']}" for layer in result["layers"] if layer["reason"]]
    return Text("\n".join(lines))


def gpu_table(result: Mapping[str, Any]) -> RenderableType:
    """The fastest kernel of each layout and the libraries, group by group, and where patterns pay."""
    tables: dict[tuple[str, str], Table] = {}
    for group in result["groups"]:
        key = group["op"], group["dtype"]
        if key not in tables:
            tables[key] = Table(title=Text(" ".join(key)), title_justify="left")
            for column in (*_WORDS, "sparsity", "median us", "p10", "p90", "TFLOP/s", "x torch", "relative error"):
                tables[key].add_column(column, justify="left" if column in _WORDS else "right")
        for row, speedup in _shown(group):
            tables[key].add_row(*_cells(row, group, speedup))
        tables[key].add_section()
    facts = result["gpu"]
    lines = [f"{facts['name']} ({facts['arch']}), driver {facts['driver']}"]
    lines += [
        f"{dtype} {pattern} is faster than torch's dense layer {_since(even['against_torch'])}, than every dense "
        f"kernel {_since(even['against_all'])} (median of {even['ops']} layer{'s' if even['ops'] > 1 else ''})"
        for dtype, patterns in result["break_even"].items()
        for pattern, even in patterns.items()
    ]
    lines += [
        f"failed: {row['op']} {row['dtype']} {row['pattern']}@{row['sparsity']:g} {row['variant'] or row['library']}: "
        f"{row['error'][-300:]}"
        for group in result["groups"]
        for row in group["kernels"]
        if row["error"] is not None
    ]
    lines += [f"skipped: {row['op']} {row['pattern']}: {row['reason']}" for row in result["skipped"]]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    return Group(*tables.values(), Text("\n".join(lines)))


def _shown(group: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], float | None]]:
    """The rows of a group that the table has, and how much faster than the dense library each is."""
    best = [found["variant"] for found in group["layouts"].values() if found is not None]
    rows = [row for row in group["kernels"] if row["error"] is None and (not row["variant"] or row["variant"] in best)]
    return [(row, group["torch_us"] and group["torch_us"] / row["latency_us"]) for row in rows]


def _cells(row: Mapping[str, Any], group: Mapping[str, Any], speedup: float | None) -> list[Text | str]:
    times = [f"{row[key]:.1f}" for key in ("latency_us", "p10_us", "p90_us")]
    return [
        group["pattern"], "pruneaug" if row["variant"] else row["library"], Text(row["variant"]), f"{row['zeros']:.3f}",
        *times, f"{row['tflops']:.1f}", "" if speedup is None else f"{speedup:.2f}",
        f"{row['max_relative_error']:.1e}",
    ]  # fmt: skip


def _since(sparsity: float | None) -> str:
    return "at no measured sparsity" if sparsity is None else f"from {sparsity:.0%} sparsity"
