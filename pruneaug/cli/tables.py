"""Tables and sentences of the commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pruneaug.cli.output import console, print_json
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.profiler.run import ProfileResult
from pruneaug.searcher.result import SearchResult


def profile_summary(result: ProfileResult, as_json: bool) -> None:
    failed = [
        {"op": r.op.key, "pattern": r.pattern, "sparsity": r.sparsity, "library": r.library, "error": r.error}
        for r in result.failed
    ]
    if as_json:
        print_json(
            {
                "measured": result.measured,
                "reused": result.reused,
                "failed": failed,
                "warnings": list(result.warnings),
            }
        )
        return
    out = console()
    counts = f"{result.measured} cells measured, {result.reused} known already, {len(failed)} failed"
    out.print(counts, highlight=False)
    for row in failed:
        out.print(
            f"failed: {row['op']} {row['pattern']}@{row['sparsity']:g}: {row['error']}", markup=False, soft_wrap=True
        )
    for warning in result.warnings:
        out.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)


def search_summary(result: SearchResult, folder: str, as_json: bool) -> None:
    best = result.best
    facts = {
        "run": folder,
        "trials": len(result.trials),
        "dense_accuracy_validation": result.dense_accuracy,
        "dense_latency_ms_predicted": result.dense_latency_us / 1e3,
        "best": None
        if best is None
        else {
            "number": best.number,
            "accuracy_validation": result.best_accuracy,
            "latency_ms_predicted": best.latency_us / 1e3,
            "sparsity": best.sparsity,
            "assignment": {name: choice.to_json() for name, choice in best.assignment.items()},
        },
        "outcome": result.outcome,
        "how_close": result.how_close,
    }
    if as_json:
        print_json(facts)
        return
    out = console()
    out.print(result.how_close, markup=False, highlight=False, soft_wrap=True)
    if best is not None:
        out.print(
            f"predicted {best.latency_us / 1e3:.3f} ms against {result.dense_latency_us / 1e3:.3f} ms dense, "
            f"validation accuracy {result.best_accuracy:.4f} against {result.dense_accuracy:.4f}; "
            f"next: pruneaug export {folder}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """What a dry run found."""
    layers = Table(title="Prunable layers", title_justify="left")
    for column in ("layer", "op", "calls", "M MACs"):
        layers.add_column(column, justify="left" if column in ("layer", "op") else "right")
    for layer in plan["layers"]:
        layers.add_row(layer["name"], layer["op"], str(layer["calls"]), f"{layer['macs'] / 1e6:.2f}")
    size = plan["space_size"]
    lines = [
        f"platform            {plan['platform']}",
        f"size of the space   {'not known before the profile' if size is None else f'{size:.3g} assignments'}",
        f"table coverage      {plan['coverage']:.0%} ({plan['cells_missing']} of {plan['cells']} cells to measure)",
        f"dense latency       {_ms(plan['latency_ms_dense'])}",
        f"best reachable      {_ms(plan['latency_ms_best'])}",
        f"estimated time      profile {_time(plan['seconds_profile'])}, dense training "
        f"{_time(plan['seconds_dense_training'])}, search at most {_time(plan['seconds_search'])}",
    ]
    kept = [f"stays dense: {row['name']}: {row['reason']}" for row in plan["kept_dense"]]
    return Group(layers, Text("\n".join([*lines, *kept])))


def bench_table(result: Mapping[str, Any]) -> RenderableType:
    """Every runtime's time, fastest first, and the speed-up; before it the patterns, if the fastest was chosen."""
    pruned = "" if result["pattern"] is None else f", {result['pattern']} at {result['sparsity']:.0%}"
    parts: list[RenderableType] = []
    if result["patterns"]:
        parts.append(_times_table("Patterns", "pattern", result["patterns"]))
    parts.append(_times_table(f"One forward pass on {result['platform']}", "runtime", result["runtimes"]))
    speedup = result["speedup_vs_best_dense"]
    lines = [f"{result['network']}, batch {result['batch']}, {_threads(result)}{pruned}"]
    if speedup is not None:
        lines.append(f"{speedup:.2f}x against the best dense, {result['best_dense']}")
    if result["predicted_ms"] is not None:
        lines.append(f"predicted {result['predicted_ms']:.3f} ms")
    lines += [
        f"no kernel of ours: {row['operators']}: {row['share']:.1%} of the time of {row['runtime']}"
        for row in result["fallbacks"]
    ]
    lines += [f"stays dense: {row['name']}: {row['reason']}" for row in result["kept_dense"]]
    lines += [f"skipped: {name}: {reason}" for name, reason in result["skipped"].items()]
    return Group(*parts, Text("\n".join([*lines, *_warnings(result)])))


def kernels_table(result: Mapping[str, Any]) -> RenderableType:
    """Every layer's time by our kernels and by other libraries, what it makes of the peak, and where patterns pay."""
    tables = {
        op: Table(title=Text(op), title_justify="left") for op in dict.fromkeys(r["op"] for r in result["kernels"])
    }
    words = ("by", "pattern", "variant")
    for table in tables.values():
        for column in (*words, "sparsity", "median us", "p10", "p90", "GFLOP/s", "of peak", "relative error"):
            table.add_column(column, justify="left" if column in words else "right")
    for row in result["kernels"]:
        by = "pruneaug" if row["library"] == RUNTIME_LIBRARY else row["library"]
        cells: list[Text | str] = [by, row["pattern"], row["variant"], f"{row['sparsity']:g}"]
        if row["error"] is not None:
            cells += ["failed", "", "", "", "", Text(row["error"][-200:])]
        else:
            cells += [f"{row[key]:.1f}" for key in ("latency_us", "p10_us", "p90_us")]
            cells += [f"{row['gflops']:.0f}", f"{row['peak_share']:.0%}", f"{row['max_relative_error']:.1e}"]
        tables[row["op"]].add_row(*cells)
    lines = [f"{result['platform']}, {_threads(result)}, peak {result['peak_gflops']:.0f} GFLOP/s"]
    lines += [_break_even(pattern, found) for pattern, found in result["break_even"].items()]
    lines += [f"skipped: {row['op']} {row['pattern']}: {row['reason']}" for row in result["skipped"]]
    return Group(*tables.values(), Text("\n".join([*lines, *_warnings(result)])))


def _break_even(pattern: str, found: Mapping[str, Any]) -> str:
    def since(sparsity: float | None) -> str:
        return "at no measured sparsity" if sparsity is None else f"from {sparsity:.0%} sparsity"

    return (
        f"{pattern} is faster than the fastest library {since(found['against_libraries'])}, than every dense kernel "
        f"{since(found['against_all'])} (median of {found['ops']} layer{'s' if found['ops'] > 1 else ''})"
    )


def _times_table(title: str, key: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows by their `key`, fastest first, failures last."""
    table = Table(title=Text(title), title_justify="left")
    for column in (key, "median ms", "p10", "p90", "runs", "relative error"):
        table.add_column(column, justify="left" if column == key else "right")
    for row in sorted(rows, key=lambda row: (row["error"] is not None, row["latency_ms"] or 0.0)):
        if row["error"] is not None:
            table.add_row(row[key], "failed", "", "", "", Text(row["error"][-200:]))
            continue
        numbers = (f"{row[name]:.3f}" for name in ("latency_ms", "p10", "p90"))
        wrong = row["max_relative_error"]
        table.add_row(row[key], *numbers, str(row["runs"]), "not finite" if wrong is None else f"{wrong:.1e}")
    return table


def _threads(result: Mapping[str, Any]) -> str:
    return f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"


def _warnings(result: Mapping[str, Any]) -> list[str]:
    return [f"warning: {text}" for text in result["warnings"]]


def _ms(value: float | None) -> str:
    return "not known before the profile" if value is None else f"{value:.3f} ms"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
