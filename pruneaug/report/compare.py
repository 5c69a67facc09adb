"""Several runs of one task in one report: their fronts, and what each bought with its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pruneaug.errors import RunError
from pruneaug.report.analysis import judged_points, reference_of, training_steps, trial_front
from pruneaug.report.data import Data, accuracy_loss, is_number, max_accuracy_loss, ratio, section
from pruneaug.report.front import Point
from pruneaug.report.insight import covered_chart, reference_words
from pruneaug.report.lines import Chart, Series, figure, legend_line
from pruneaug.report.sections import titled_section
from pruneaug.report.verdict import headline
from pruneaug.report.words import (
    MISSING,
    epochs,
    lost_points,
    milliseconds,
    percent,
    points,
    seconds,
    signed_points,
    times,
)

COLUMNS = (
    "Run",
    "Strategy",
    "Verdict",
    "Latency",
    "Speed-up",
    "Accuracy, points",
    "Trials",
    "Epochs",
    "Time",
    "Covered",
)


def check_same_task(runs: Sequence[Data]) -> None:
    """Raises RunError unless all runs are of the same task and network."""
    tasks = {str(_task(run)): section(run, "job").get("name") for run in runs}
    if len(tasks) > 1:
        (first, name), (second, other) = list(tasks.items())[:2]
        raise RunError(
            f"runs are compared on one task and network, but {name!r} has {first} and {other!r} has {second}; "
            "name runs of the same `task`"
        )


def comparison(runs: Sequence[Data]) -> dict[str, Any]:
    """What `report RUN RUN ... --json` prints: the reports, the common corner, what each run covers in the end."""
    reference = reference_of(runs)
    corner = None if reference is None else {"latency_ms": reference.latency_ms, "accuracy_loss": reference.loss}
    covered = [None if reference is None else training_steps(run, reference)[-1].covered for run in runs]
    return {"version": 1, "reference": corner, "covered": covered, "names": run_names(runs), "runs": list(runs)}


def run_names(runs: Sequence[Data]) -> list[str]:
    """The names of the run folders, numbered where they are the same."""
    names = [str(section(run, "job").get("name") or "run") for run in runs]
    return [name if names.count(name) == 1 else f"{name} ({index + 1})" for index, name in enumerate(names)]


def cautions(runs: Sequence[Data]) -> list[str]:
    """What differs between the runs beside what is compared."""
    told = {
        "the platform": [section(run, "platform").get("name") for run in runs],
        "the dense network's accuracy": [section(run, "dense").get("accuracy_validation") for run in runs],
        "the dense network's predicted latency": [section(run, "dense").get("latency_ms_predicted") for run in runs],
        "the accepted loss": [max_accuracy_loss(run) for run in runs],
    }
    different = [what for what, values in told.items() if len({str(value) for value in values}) > 1]
    return [f"The runs differ in {what}." for what in different]


def comparison_table(runs: Sequence[Data]) -> RenderableType:
    """One row a run, for the terminal."""
    table = Table(title="Runs side by side", title_justify="left", title_style="bold", box=None, header_style="dim")
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if index < 3 else "right", overflow="fold")
    for row in _rows(runs):
        table.add_row(*map(Text, row))
    lines = cautions(runs)
    reference = reference_of(runs)
    if reference is not None:
        lines.append(f"Covered: {reference_words(reference)}")
    return Group(table, Text(), *(Text(line, style="dim") for line in lines))


def comparison_body(runs: Sequence[Data]) -> list[str]:
    """The sections of the page."""
    names, reference = run_names(runs), reference_of(runs)
    platform = section(runs[0], "platform")
    facts = [platform.get("cpu") or platform.get("name"), section(runs[0], "network").get("name"), _task(runs[0])]
    line = " · ".join(escape(str(fact)) for fact in facts if fact)
    head = (
        f'<header>\n<div class="brand">pruneaug report</div>\n<h1>{len(runs)} runs</h1>\n<p class="meta">{line}</p>\n'
    )
    warned = "".join(f"<li>{escape(caution)}</li>" for caution in cautions(runs))
    body = [
        f"{head}</header>",
        f'<section class="warnings">\n<h2>Read with care</h2>\n<ul>{warned}</ul>\n</section>' if warned else "",
        _table(runs),
        _fronts(runs, names),
    ]
    if reference is not None:
        steps = [(name, training_steps(run, reference)) for name, run in zip(names, runs, strict=True)]
        body.append(
            titled_section("What training bought", reference_words(reference), figure(covered_chart(steps, reference)))
        )
    return [piece for piece in body if piece]


def _rows(runs: Sequence[Data]) -> list[list[str]]:
    reference, rows = reference_of(runs), []
    for name, run in zip(run_names(runs), runs, strict=True):
        best, search = section(run, "best"), section(run, "search")
        latency = best.get("latency_ms_predicted")
        covered = MISSING if reference is None else percent(training_steps(run, reference)[-1].covered)
        rows.append(
            [
                name,
                str(search.get("strategy") or MISSING),
                headline(run),
                milliseconds(latency),
                times(ratio(section(run, "dense").get("latency_ms_predicted"), latency)),
                signed_points(accuracy_loss(run, "validation")),
                str(len(run.get("trials") or ())),
                epochs(search.get("epochs")),
                seconds(search.get("seconds")),
                covered,
            ]
        )
    return rows


def _table(runs: Sequence[Data]) -> str:
    head = "".join(f'<th scope="col"{"" if i < 3 else _NUM}>{name}</th>' for i, name in enumerate(COLUMNS))
    body = ""
    for colour, row in enumerate(_rows(runs)):
        cells = [f'<td><span class="chip">{legend_line(colour)}{escape(row[0])}</span></td>']
        cells += [f"<td>{escape(words)}</td>" for words in row[1:3]]
        cells += [f"<td{_NUM}>{escape(words)}</td>" for words in row[3:]]
        body += f"<tr>{''.join(cells)}</tr>"
    lead = "Latencies are predicted, speed-ups against the dense network by the same table. Covered is explained below."
    table = f'<div class="scroll"><table class="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return titled_section("Runs side by side", lead, table)


_NUM = ' class="num"'


def _fronts(runs: Sequence[Data], names: Sequence[str]) -> str:
    """Loss against latency: the front of each run as stairs, its other trials faint."""
    everything = [point for run in runs for point in judged_points(run)]
    if not everything:
        return ""
    dense = [value for run in runs if is_number(value := section(run, "dense").get("latency_ms_predicted"))]
    allowed = [value for run in runs if (value := max_accuracy_loss(run)) is not None]
    slowest = max([point.latency_ms for point in everything] + dense)
    fastest = min(point.latency_ms for point in everything)
    fronts = [trial_front(run) for run in runs]
    least = min(point.loss for point in everything)
    # Hopeless trials would flatten the few points that decide.
    worst = max([least + 0.01, *(3 * value for value in allowed), 0.02])
    low, high = min(least, 0.0), min(worst, max(point.loss for point in everything))
    high = max(high, low + 0.005, *(1.3 * value for value in allowed))
    margin = 0.06 * (high - low)
    limit = None
    if len(set(allowed)) == 1:
        limit = (-allowed[0], f"{points(allowed[0])} points may be lost")
    start = 0.0 if fastest < 0.6 * slowest else 2 * fastest - slowest if slowest > fastest else 0.9 * slowest
    chart = Chart(
        title="Accuracy lost against predicted latency, one line for each run",
        x_name="predicted latency, ms",
        y_name="accuracy against dense, points",
        x_range=(start, slowest + 0.05 * (slowest - start)),
        y_range=(-high - margin, -low + margin),
        series=[
            _front(name, colour, front, judged_points(run), slowest, -high - margin)
            for colour, (name, run, front) in enumerate(zip(names, runs, fronts, strict=True))
        ],
        y_factor=100,
        level=limit,
    )
    lead = (
        "Up and to the left is better. The stairs are each run's front, what some trial of it reaches in that time, "
        "after its short fine-tuning; small dots are its other trials."
    )
    return titled_section("Accuracy against latency", lead, figure(chart))


def _front(
    name: str, colour: int, front: Sequence[Point], trials: Sequence[Point], slowest: float, floor: float
) -> Series:
    shown = [point for point in front if -point.loss >= floor]
    corners: list[tuple[float, float]] = []
    for point in shown:
        corners += [(point.latency_ms, corners[-1][1] if corners else floor), (point.latency_ms, -point.loss)]
    if corners:
        corners.append((slowest, corners[-1][1]))
    marks = [(point.latency_ms, -point.loss, _says(name, point)) for point in shown]
    on_front = {point.trial for point in front}
    faint = [(p.latency_ms, -p.loss, _says(name, p)) for p in trials if p.trial not in on_front]
    return Series(name, colour, corners, marks, faint)


def _says(name: str, point: Point) -> str:
    return f"{name}, trial {point.trial}: {milliseconds(point.latency_ms)}, {lost_points(point.loss)}"


def _task(run: Data) -> str:
    task = section(section(run, "job").get("spec") or {}, "task")
    model = task.get("model")
    network = model.get("name") if isinstance(model, Mapping) else None
    return " with ".join(str(part) for part in (task.get("name"), network) if part)
