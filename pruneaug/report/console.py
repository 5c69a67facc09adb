"""The report on the terminal: the same figures as the page, as rich tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pruneaug.report.data import Data, ratio, rows, section
from pruneaug.report.holding import holding_words
from pruneaug.report.insight import (
    FRONT_COLUMNS,
    cost_words,
    faster_words,
    front_rows,
    recovery_words,
    repeat_words,
)
from pruneaug.report.layers import pattern_words
from pruneaug.report.runtimes import measured_runtimes
from pruneaug.report.sections import summary_rows
from pruneaug.report.verdict import headline, outcome, verdict
from pruneaug.report.words import MISSING, describe_op, microseconds, milliseconds, percent, times

_STYLES = {
    "pays": "green",
    "stay dense": "yellow",
    "infeasible": "yellow",
    "unmeasured": "cyan",
    "failed": "red",
    "unfinished": "cyan",
}


def console_report(data: Data) -> RenderableType:
    """All of it, verdict last: the end of a terminal's output is what is read first."""
    pieces: list[RenderableType] = [layer_table(data)] if rows(data, "layers") else []
    if measured_runtimes(data):
        pieces.append(runtime_table(data))
    pieces.append(summary_table(data))
    if listed := front_rows(data):
        pieces.append(front_table(listed))
    if lessons := insight_text(data):
        pieces.append(lessons)
    pieces += [Text(f"Warning: {warning}", style="yellow") for warning in data.get("warnings") or ()]
    spaced = [part for piece in pieces for part in (piece, Text())]
    return Group(*spaced, verdict_panel(data))


def front_table(listed: Sequence[Sequence[str]]) -> Table:
    """The trials that no other beats, where they are what was searched."""
    table = _table("The front")
    for name in FRONT_COLUMNS:
        table.add_column(name.lower(), justify="right")
    for row in listed:
        table.add_row(*row)
    return table


def insight_text(data: Data) -> Text | None:
    """What the trials teach, in sentences; None if they teach nothing."""
    listed = [
        faster_words(data),
        " ".join(holding_words(data)),
        cost_words(data),
        recovery_words(data),
        repeat_words(data),
    ]
    said = [words for words in listed if words]
    return Text.assemble(("What the trials say", "bold"), *(f"\n{words}" for words in said)) if said else None


def summary_table(data: Data) -> Table:
    """Dense and pruned side by side; the dense network alone where no pruned one was found."""
    table = _table("Dense and pruned, side by side" if section(data, "best") else "The dense network")
    table.add_column("")
    table.add_column("dense", justify="right")
    if not section(data, "best"):
        for name, dense, _, _ in summary_rows(data):
            table.add_row(name, dense)
        return table
    table.add_column("pruned", justify="right", style="bold")
    table.add_column("change", justify="right", style="dim")
    for row in summary_rows(data):
        table.add_row(*row)
    return table


def layer_table(data: Data) -> Table:
    """One row a layer: pattern, sparsity, and its time dense and pruned by the latency table."""
    table = _table("Layer by layer")
    table.add_column("layer", overflow="fold")
    table.add_column("op", style="dim")
    if not section(data, "best"):  # only the dense network is there
        table.add_column("dense", justify="right")
        for layer in rows(data, "layers"):
            row = (Text(str(layer.get("name"))), describe_op(layer.get("op")))
            table.add_row(*row, microseconds(layer.get("latency_us_dense")))
        table.add_section()
        table.add_row("rest of the network", "", microseconds(data.get("rest_us")))
        return table
    table.add_column("pattern")
    for name in ("sparsity", "dense", "pruned", "speed-up"):
        table.add_column(name, justify="right")
    for layer in rows(data, "layers"):
        dense = layer.get("pattern") == "dense"
        table.add_row(
            Text(str(layer.get("name"))),
            describe_op(layer.get("op")),
            Text(pattern_words(layer.get("pattern")), style="dim" if dense else ""),
            MISSING if dense else percent(layer.get("sparsity"), 0),
            microseconds(layer.get("latency_us_dense")),
            microseconds(layer.get("latency_us")),
            times(ratio(layer.get("latency_us_dense"), layer.get("latency_us"))),
        )
    table.add_section()
    table.add_row("rest of the network", "", "", "", *2 * [microseconds(data.get("rest_us"))], "")
    return table


def runtime_table(data: Data) -> Table:
    """Every runtime that was measured, fastest first."""
    table = _table("Measured, whole network")
    table.add_column("runtime")
    table.add_column("latency", justify="right")
    table.add_column("10th – 90th percentile", justify="right", style="dim")
    for runtime in measured_runtimes(data):
        spread = f"{milliseconds(runtime.p10)} – {milliseconds(runtime.p90)}"
        table.add_row(
            Text(runtime.name, style="bold" if runtime.pruned else ""),
            milliseconds(runtime.latency_ms),
            Text(runtime.error or (spread if runtime.p10 is not None else "")),
        )
    return table


def verdict_panel(data: Data) -> Panel:
    style = _STYLES[outcome(data)]
    words = str(data.get("verdict") or verdict(data))
    return Panel(Text(words), title=Text(headline(data), style=f"bold {style}"), title_align="left", border_style=style)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
