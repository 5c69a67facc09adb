"""The chart of the search: accuracy against latency of all trials, their front, the limit, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pruneaug.report import svg
from pruneaug.report.analysis import trial_front
from pruneaug.report.axes import FOOT, Axes, drawn_axes
from pruneaug.report.data import Data, chosen_trial, is_number, max_accuracy_loss, max_latency_ms, rows, section
from pruneaug.report.words import milliseconds, percent, points, trial_state

_MARKS: dict[str, svg.Mark] = {
    "best": svg.star,
    "dense": svg.diamond,
    "feasible": svg.circle,
    "infeasible": svg.triangle,
    "below": svg.triangle_down,
    "skipped": svg.bar,
    "stopped": svg.square,
    "failed": svg.cross,
    "front": svg.dash,
    "limit": svg.dash,
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
        _front(data, frame),
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
    end = section(data, "status").get("state") not in ("searching", "stopped")
    chosen = [("best", "best, after its final fine-tuning" if end else "best so far")]
    chosen = chosen if _place(section(data, "best")) else []
    dense = [("dense", "dense")] if _place(section(data, "dense")) else []
    words = {
        "feasible": "accurate enough",
        "infeasible": "loses too much",
        "below": "loses more than the chart shows",
        "skipped": "not trained: could not win, or was tried before",
        "stopped": "stopped on the way",
        "failed": "failed",
    }
    limit = [("limit", f"{points(allowed)} points below dense")] if (allowed := max_accuracy_loss(data)) else []
    if (limit_ms := max_latency_ms(data)) is not None:
        limit = [("limit", f"{milliseconds(limit_ms)}, the limit")]
    front = [("front", "front")] if trial_front(data) else []
    return [*chosen, *dense, *((state, words[state]) for state in words if state in states), *front, *limit]


def legend_mark(kind: str) -> str:
    """The mark of one legend entry, 16 x 16."""
    return svg.element("svg", _drawn(kind, 8, 8, 5), viewBox="0 0 16 16", class_="mark", aria_hidden="true")


def _frame(data: Data, trials: Sequence[Data], width: float, height: float) -> _Frame:
    compact = width < 500
    left, right, top, bottom = (40 if compact else 52), 14, 30, FOOT
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
    axes = Axes(frame.x, frame.y, frame.width, frame.height)
    lane = ""
    if frame.lane is not None:
        line = f"M{frame.x.start:.1f} {frame.y.start:.1f}H{frame.x.end:.1f}"
        lane = svg.element("path", d=line, class_="grid lane")
    return drawn_axes(axes, "predicted latency, ms", "validation accuracy, %", 100) + lane


def _front(data: Data, frame: _Frame) -> str:
    """Stairs: at each latency, the accuracy that some trial reaches in that time."""
    dense = section(data, "dense").get("accuracy_validation")
    if not is_number(dense):
        return ""
    shown = [(point.latency_ms, dense - point.loss) for point in trial_front(data)]
    shown = [(latency, accuracy) for latency, accuracy in shown if accuracy >= frame.y.low]
    if not shown:
        return ""
    path = f"M{frame.x(shown[0][0]):.1f} {frame.y.start:.1f}"
    path += "".join(f"H{frame.x(latency):.1f}V{frame.y(accuracy):.1f}" for latency, accuracy in shown)
    return svg.element("path", d=f"{path}H{frame.x.end:.1f}", class_="front")


def _constraint(data: Data, frame: _Frame) -> str:
    dense, allowed = section(data, "dense").get("accuracy_validation"), max_accuracy_loss(data)
    limit_ms = max_latency_ms(data)
    if limit_ms is not None and frame.x.low < limit_ms < frame.x.high:
        x, top = frame.x(limit_ms), frame.y.end
        area = svg.element(
            "rect", x=frame.x.start, y=top, width=x - frame.x.start, height=frame.y.start - top, class_="allowed"
        )
        return area + svg.element("path", d=f"M{x:.1f} {top:.1f}V{frame.y.start:.1f}", class_="limit")
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
    return area + svg.element("path", d=f"M{frame.x.start:.1f} {y:.1f}H{frame.x.end:.1f}", class_="limit")


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
        return state if (state := trial_state(trial)) in ("skipped", "stopped") else "failed"
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
        pieces.append(_landmark("best", best, 6.5, "Best", frame))
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
