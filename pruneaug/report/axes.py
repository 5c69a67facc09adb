"""Axes of a chart: two linear scales with round ticks, grid lines and names with units."""

from __future__ import annotations

from dataclasses import dataclass

from pruneaug.report import svg

FOOT = 44
"""User units below a plot: the ticks' labels and the axis' name."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Where a plot lies in a drawing of `width` x `height`; `bottom` is that of the horizontal axis."""

    x: svg.Scale
    y: svg.Scale
    width: float
    height: float

    @property
    def bottom(self) -> float:
        return self.height - FOOT


def plot_axes(x_range: tuple[float, float], y_range: tuple[float, float], width: float, height: float) -> Axes:
    """Axes that fill a drawing; narrow ones leave less room for labels."""
    left = 40 if width < 500 else 52
    return Axes(svg.Scale(*x_range, left, width - 14), svg.Scale(*y_range, height - FOOT, 30), width, height)


def drawn_axes(axes: Axes, x_name: str, y_name: str, y_factor: float = 1.0) -> str:
    """Grid, ticks, labels and names; labels of y are multiplied by `y_factor` (100 for per cent)."""
    x_ticks = svg.ticks(axes.x.low, axes.x.high, 8 if axes.width > 500 else 4)
    y_ticks = svg.ticks(axes.y.low, axes.y.high)
    pieces = []
    for tick, label in zip(y_ticks, svg.tick_labels([y_factor * tick for tick in y_ticks]), strict=True):
        y = axes.y(tick)
        pieces.append(svg.element("path", d=f"M{axes.x.start:.1f} {y:.1f}H{axes.x.end:.1f}", class_="grid"))
        pieces.append(svg.text(axes.x.start - 8, y + 4, label, class_="tick", text_anchor="end"))
    for tick, label in zip(x_ticks, svg.tick_labels(x_ticks), strict=True):
        pieces.append(svg.element("path", d=f"M{axes.x(tick):.1f} {axes.bottom:.1f}v5", class_="axis"))
        pieces.append(svg.text(axes.x(tick), axes.bottom + 18, label, class_="tick", text_anchor="middle"))
    pieces.append(svg.element("path", d=f"M{axes.x.start:.1f} {axes.bottom:.1f}H{axes.x.end:.1f}", class_="axis"))
    pieces.append(svg.text(0, 12, y_name, class_="label"))
    pieces.append(svg.text(axes.x.end, axes.height - 6, x_name, class_="label", text_anchor="end"))
    return "".join(pieces)
