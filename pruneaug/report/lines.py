"""Charts of lines: fronts of several runs, and what training bought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from pruneaug.report import svg
from pruneaug.report.axes import Axes, drawn_axes, plot_axes

COLOURS = 8


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name, the number of its colour, its corners, marks with what each says, and faint marks."""

    name: str
    colour: int
    line: Sequence[tuple[float, float]]
    marks: Sequence[tuple[float, float, str]] = ()
    faint: Sequence[tuple[float, float, str]] = ()
    """(x, y, what it says); those outside the chart are left out."""


@dataclass(frozen=True, slots=True)
class Chart:
    """What a chart shows: ranges and names of its axes, its lines, and a level drawn across it."""

    title: str
    x_name: str
    y_name: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    series: Sequence[Series] = field(default_factory=tuple)
    y_factor: float = 1.0
    level: tuple[float, str] | None = None


def figure(chart: Chart) -> str:
    """The chart, drawn twice: text in a drawing shrinks with it on a phone. Its legend stands above."""
    wide, narrow = drawn(chart, 880, 380), drawn(chart, 350, 320)
    named = chart.series if len(chart.series) > 1 else ()
    entries = "".join(f"<li>{legend_line(each.colour)}{escape(each.name)}</li>" for each in named)
    if chart.level is not None:
        entries += f"<li>{legend_limit()}{escape(chart.level[1])}</li>"
    legend = f'<ul class="legend">{entries}</ul>\n' if entries else ""
    return f'{legend}<figure class="wide">{wide}</figure>\n<figure class="narrow">{narrow}</figure>'


def drawn(chart: Chart, width: float, height: float) -> str:
    """SVG of `width` x `height` user units."""
    axes = plot_axes(chart.x_range, chart.y_range, width, height)
    pieces = [drawn_axes(axes, chart.x_name, chart.y_name, chart.y_factor), _level(chart, axes)]
    pieces += [_faint(series, axes) for series in chart.series]
    pieces += [_line(series, axes) for series in chart.series]
    return svg.element("svg", "".join(pieces), viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=chart.title)


def legend_line(colour: int) -> str:
    kind = colour % COLOURS
    line = svg.element("path", d="M0 8H16", class_=f"l-line l-p{kind}")
    return svg.element("svg", line + _MARKS[kind % len(_MARKS)](8, 8, 3.5, kind), viewBox="0 0 16 16", class_="mark")


def legend_limit() -> str:
    line = svg.element("path", d="M0 8H16", class_="m-limit")
    return svg.element("svg", line, viewBox="0 0 16 16", class_="mark", aria_hidden="true")


def _line(series: Series, axes: Axes) -> str:
    kind = series.colour % COLOURS
    corners = [(axes.x(x), axes.y(y)) for x, y in series.line]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    pieces = [svg.element("path", d=path, class_=f"l-line l-p{kind}")] if len(corners) > 1 else []
    mark = _MARKS[kind % len(_MARKS)]
    shown = [(x, y, says) for x, y, says in series.marks if _is_in(x, y, axes)]
    pieces += [svg.titled(mark(axes.x(x), axes.y(y), 4, kind), says) for x, y, says in shown]
    return "".join(pieces)


def _faint(series: Series, axes: Axes) -> str:
    kind = series.colour % COLOURS
    shown = [(x, y, says) for x, y, says in series.faint if _is_in(x, y, axes)]
    marks = (svg.titled(svg.circle(axes.x(x), axes.y(y), 2.5), says) for x, y, says in shown)
    return svg.element("g", "".join(marks), class_=f"l-faint d-p{kind}")


def _level(chart: Chart, axes: Axes) -> str:
    if chart.level is None or not chart.y_range[0] < chart.level[0] < chart.y_range[1]:
        return ""
    y = axes.y(chart.level[0])
    return svg.element("path", d=f"M{axes.x.start:.1f} {y:.1f}H{axes.x.end:.1f}", class_="limit")


def _is_in(x: float, y: float, axes: Axes) -> bool:
    lows, highs = (axes.x.low, axes.y.low), (axes.x.high, axes.y.high)
    return all(low <= value <= high for low, value, high in zip(lows, (x, y), highs, strict=True))


def _circle(x: float, y: float, radius: float, kind: int) -> str:
    return svg.element("g", svg.circle(x, y, radius), class_=f"d-mark d-p{kind}")


def _triangle(x: float, y: float, radius: float, kind: int) -> str:
    return svg.element("g", svg.triangle(x, y, 1.2 * radius), class_=f"d-mark d-p{kind}")


def _diamond(x: float, y: float, radius: float, kind: int) -> str:
    return svg.element("g", svg.diamond(x, y, radius), class_=f"d-mark d-p{kind}")


def _square(x: float, y: float, radius: float, kind: int) -> str:
    return svg.element("g", svg.square(x, y, radius), class_=f"d-mark d-p{kind}")


_MARKS = (_circle, _triangle, _diamond, _square)
