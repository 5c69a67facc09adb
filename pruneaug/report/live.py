"""The table of a search while it runs."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pruneaug.report.watch import RunWatch
from pruneaug.report.words import (
    MISSING,
    epoch_words,
    epochs,
    lost_points,
    milliseconds,
    ratio_words,
    seconds,
    signed_points,
    times,
    trial_state,
)

_SHOWN = 5
_STYLES = {"feasible": "green", "infeasible": "yellow", "skipped": "dim", "stopped": "dim", "failed": "red"}


def live_table(watch: RunWatch, stopping: bool = False) -> RenderableType:
    """The best so far, the counts, what it cost, the time left; below, the last trials."""
    figures = Table.grid(padding=(0, 2))
    figures.add_column(style="dim", no_wrap=True)
    figures.add_column(overflow="fold")
    for name, words in figure_rows(watch):
        figures.add_row(name, Text(words))
    pieces: list[RenderableType] = [figures]
    if watch.rows:
        pieces += [Text(), last_trials(watch)]
    title = "Search: stopping; Ctrl-C again stops at once" if stopping else "Search"
    return Panel(Group(*pieces), title=title, title_align="left", border_style="yellow" if stopping else "dim")


def figure_rows(watch: RunWatch) -> list[tuple[str, str]]:
    """(name, words) of the table's head."""
    best, wanted = watch.best, "" if watch.wanted is None else f" of {watch.wanted}"
    left = watch.seconds_left
    found = "nothing that keeps the limit and is faster than dense yet"
    if best:
        found = (
            f"trial {best['number']}: {milliseconds(best['latency_ms_predicted'])} predicted, "
            f"{ratio_words(watch.speedup(best))}, {lost_points(best['accuracy_loss'])}"
            f" ({watch.limit_words})"
        )
    return [
        ("dense", f"{milliseconds(watch.dense_ms)} predicted"),
        ("best", found),
        ("trials", f"{len(watch.rows)}{wanted}: {watch.counts_words()}"),
        ("training", f"{epoch_words(watch.epochs)}, {seconds(watch.trial_seconds)} in trials"),
        ("left", MISSING if left is None else f"about {seconds(left)}, as the last trials took"),
    ]


def last_trials(watch: RunWatch) -> Table:
    """The trials of the highest numbers."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("trial", "outcome", "latency", "speed-up", "accuracy, points", "epochs", "time"):
        table.add_column(name, justify="left" if name == "outcome" else "right", no_wrap=True)
    table.add_column("", overflow="ellipsis", no_wrap=True)
    best = watch.best
    for _, row in sorted(watch.rows.items())[-_SHOWN:]:
        state = trial_state(row)
        is_best = row is best
        table.add_row(
            str(row.get("number")),
            Text("best" if is_best else state, style=f"bold {_STYLES[state]}" if is_best else _STYLES[state]),
            milliseconds(row.get("latency_ms_predicted")),
            times(watch.speedup(row)),
            signed_points(row.get("accuracy_loss")),
            epochs(row.get("epochs")),
            seconds(row.get("seconds")),
            Text(str(row.get("error") or "").splitlines()[0] if row.get("error") else "", style="dim"),
        )
    return table
