"""The chart of the search: accuracy against latency of all trials, the constraint, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pruneaug.report import svg
from pruneaug.report.data import Data, chosen_trial, is_number, max_accuracy_loss, rows, section
from pruneaug.report.words import milliseconds, percent, points, trial_state

_MARKS: dict[str, svg.Mark] = {
    "best": svg.star,
    "dense": svg.diamond,
    "feasible": svg.circle,
    "infeasible": svg.triangle,
    "below": svg.triangle_down,
    "skipped": svg.bar,
    "failed": svg.cross,
}


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where things go: data scales, the plot's edges and the lane of the trials without an accuracy."""

    x: svg.Scale
    y: svg.Scale
    width: float
    height: float
    lane: float | None


def accuracy_against_latency(data: Data, width: float, height: float) -> str:
    """SVG of `width` x `height` user units; an empty string if no trial has a predicted latency."""
    trials = [trial for trial in rows(data, "trials") if is_number(trial.get("latency_ms_predicted"))]
    if not trials:
        return ""
    frame = _frame(data, trials, width, height)
    layers = [
        _constraint(data, frame),
        _axes(frame),
        *(_trial(trial, frame) for trial in trials),
        _landmarks(data, frame),
    ]
    return svg.element(
        "svg",
        "".join(layers),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=f"Accuracy against predicted latency of {len(trials)} trials, as in the table of all trials",
    )


def marks_in_use(data: Data) -> list[tuple[str, str]]:
    """(class, words) of the marks that the chart shows, for its legend."""
    trials = rows(data, "trials")
    low, _ = _accuracy_range(data, trials)
    states = {_kind(trial, low) for trial in trials if is_number(trial.get("latency_ms_predicted"))}
    chosen = [("best", "best, after its final fine-tuning")] if _place(section(data, "best")) else []
    dense = [("dense", "dense")] if _place(section(data, "dense")) else []
    words = {
        "feasible": "accurate enough",
        "infeasible": "loses too much",
        "below": "loses more than the chart shows",
        "skipped": "not trained: could not become the fastest",
        "failed": "failed",
    }
    return [*chosen, *dense, *((state, words[state]) for state in words if state in states)]


def legend_mark(kind: str) -> str:
    """The mark of one legend entry, 16 x 16."""
    return svg.element("svg", _drawn(kind, 8, 8, 5), viewBox="0 0 16 16", class_="mark", aria_hidden="true")


def _frame(data: Data, trials: Sequence[Data], width: float, height: float) -> _Frame:
    compact = width < 500
    left, right, top, bottom = (40 if compact else 52), 14, 30, 44
    marked = [place for key in ("dense", "best") if (place := _place(section(data, key)))]
    latencies = [trial["latency_ms_predicted"] for trial in trials] + [latency for latency, _ in marked]
    slowest, fastest = max(latencies), min(latencies)
    low_x = 0.0 if fastest < 0.6 * slowest else 2 * fastest - slowest if slowest > fastest else 0.9 * slowest
    lane_height = 30 if any(not is_number(trial.get("accuracy_validation")) for trial in trials) else 0
    low_y, high_y = _accuracy_range(data, trials)
    floor = height - bottom - lane_height
    return _Frame(
        x=svg.Scale(low_x, slowest + 0.05 * (slowest - low_x), left, width - right),
        y=svg.Scale(low_y, high_y, floor, top),
        width=width,
        height=height,
        lane=height - bottom - lane_height / 2 if lane_height else None,
    )


def _accuracy_range(data: Data, trials: Sequence[Data]) -> tuple[float, float]:
    """The accuracies worth showing: hopeless trials would flatten the few points that decide, and sit on the edge."""
    shown = [trial["accuracy_validation"] for trial in trials if is_number(trial.get("accuracy_validation"))]
    marked = [place[1] for key in ("dense", "best") if (place := _place(section(data, key)))]
    if not shown and not marked:
        return 0.0, 1.0
    highest = max([*shown, *marked])
    allowed = max_accuracy_loss(data) or 0.0
    nearest = max(shown, default=highest)
    cut = min(highest - max(4 * allowed, 0.02), nearest - 0.01)
    limit = [dense - allowed] if is_number(dense := section(data, "dense").get("accuracy_validation")) else []
    lowest = min([*(accuracy for accuracy in shown if accuracy >= cut), *marked, *limit])
    margin = max(0.08 * (highest - lowest), 0.002)
    return max(0.0, lowest - margin), min(highest + margin, 1.005)


def _axes(frame: _Frame) -> str:
    x_ticks, y_ticks = (
        svg.ticks(frame.x.low, frame.x.high, 8 if frame.width > 500 else 4),
        svg.ticks(frame.y.low, frame.y.high),
    )
    bottom, percents = frame.height - 44, [100 * tick for tick in y_ticks]
    pieces = []
    for tick, label in zip(y_ticks, svg.tick_labels(percents), strict=True):
        y = frame.y(tick)
        pieces.append(svg.element("path", d=f"M{frame.x.start:.1f} {y:.1f}H{frame.x.end:.1f}", class_="grid"))
        pieces.append(svg.text(frame.x.start - 8, y + 4, label, class_="tick", text_anchor="end"))
    for tick, label in zip(x_ticks, svg.tick_labels(x_ticks), strict=True):
        pieces.append(svg.element("path", d=f"M{frame.x(tick):.1f} {bottom:.1f}v5", class_="axis"))
        pieces.append(svg.text(frame.x(tick), bottom + 18, label, class_="tick", text_anchor="middle"))
    pieces.append(svg.element("path", d=f"M{frame.x.start:.1f} {bottom:.1f}H{frame.x.end:.1f}", class_="axis"))
    pieces.append(svg.text(0, 12, "validation accuracy, %", class_="label"))
    pieces.append(svg.text(frame.x.end, frame.height - 6, "predicted latency, ms", class_="label", text_anchor="end"))
    if frame.lane is not None:
        pieces.append(
            svg.element("path", d=f"M{frame.x.start:.1f} {frame.y.start:.1f}H{frame.x.end:.1f}", class_="grid lane")
        )
    return "".join(pieces)


def _constraint(data: Data, frame: _Frame) -> str:
    dense, allowed = section(data, "dense").get("accuracy_validation"), max_accuracy_loss(data)
    if not is_number(dense) or allowed is None or not frame.y.low < dense - allowed < frame.y.high:
        return ""
    y = frame.y(dense - allowed)
    area = svg.element(
        "rect",
        x=frame.x.start,
        y=frame.y.end,
        width=frame.x.end - frame.x.start,
        height=y - frame.y.end,
        class_="allowed",
    )
    line = svg.element("path", d=f"M{frame.x.start:.1f} {y:.1f}H{frame.x.end:.1f}", class_="limit")
    words = f"{points(allowed)} points below dense"
    return area + line + svg.text(frame.x.end - 6, y + 15, words, class_="limit-label", text_anchor="end")


def _trial(trial: Data, frame: _Frame) -> str:
    state, accuracy = trial_state(trial), trial.get("accuracy_validation")
    x = frame.x(trial["latency_ms_predicted"])
    words = (
        f"Trial {trial.get('number')}, {state}: {milliseconds(trial['latency_ms_predicted'])}, "
        f"accuracy {percent(accuracy, 2)}, sparsity {percent(trial.get('sparsity'))}"
    )
    kind = _kind(trial, frame.y.low)
    if kind == "below":
        return svg.titled(_drawn(kind, x, frame.y.start - 6, 4.5), f"{words} (below this chart)")
    if is_number(accuracy):
        return svg.titled(_drawn(kind, x, frame.y(accuracy), 4.5), words)
    return svg.titled(_drawn(kind, x, frame.lane if frame.lane is not None else frame.y.start, 5), words)


def _kind(trial: Data, lowest: float) -> str:
    """The mark of a trial in a chart that begins at the accuracy `lowest`."""
    accuracy = trial.get("accuracy_validation")
    if not is_number(accuracy):
        return "skipped" if trial_state(trial) == "skipped" else "failed"
    return "below" if accuracy < lowest else trial_state(trial)


def _landmarks(data: Data, frame: _Frame) -> str:
    pieces = []
    trial, dense, best = _place(chosen_trial(data)), _place(section(data, "dense")), _place(section(data, "best"))
    if dense:
        pieces.append(_landmark("dense", dense, 5.5, "Dense", frame))
    if best and trial and math.isclose(best[0], trial[0], rel_tol=0.01):
        start, end = (frame.x(trial[0]), frame.y(trial[1])), (frame.x(best[0]), frame.y(best[1]))
        pieces.append(svg.element("path", d="M{:.1f} {:.1f}L{:.1f} {:.1f}".format(*start, *end), class_="step"))
    if best:
        pieces.append(_landmark("best", best, 6.5, "Best, after its final fine-tuning", frame))
    return "".join(pieces)


def _landmark(kind: str, place: tuple[float, float], radius: float, name: str, frame: _Frame) -> str:
    latency, accuracy = place
    drawn = _drawn(kind, frame.x(latency), frame.y(accuracy), radius)
    return svg.titled(drawn, f"{name}: {milliseconds(latency)}, accuracy {percent(accuracy, 2)}")


def _place(figures: Data) -> tuple[float, float] | None:
    """(predicted latency in ms, validation accuracy), or None where one is missing."""
    latency, accuracy = figures.get("latency_ms_predicted"), figures.get("accuracy_validation")
    return (latency, accuracy) if is_number(latency) and is_number(accuracy) else None


def _drawn(kind: str, x: float, y: float, radius: float) -> str:
    return svg.element("g", _MARKS[kind](x, y, radius), class_=f"m-{kind}")
