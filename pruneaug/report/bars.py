"""Bars that stretch with the page: inline SVG in per cent of its width, so that a phone reads them too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pruneaug.report import svg


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a stacked bar: its value, its CSS class, what it says under the pointer."""

    value: float
    kind: str
    title: str


def bar(value: float, full: float, kind: str, title: str, height: float = 10) -> str:
    """One bar of value / full of the width."""
    shape = svg.element("rect", width=_share(value, full), height="100%", rx=2, class_=f"b-{kind}")
    return _canvas(svg.titled(shape, title), height)


def bar_with_spread(
    value: float, low: float | None, high: float | None, mark: float | None, full: float, kind: str, title: str
) -> str:
    """A bar to `value`, a whisker from `low` to `high`, and an upright stroke at `mark` (a prediction)."""
    pieces = [svg.element("rect", y="22%", width=_share(value, full), height="56%", rx=2, class_=f"b-{kind}")]
    if low is not None and high is not None:
        start, end = _share(low, full), _share(high, full)
        pieces.append(svg.element("line", x1=start, x2=end, y1="50%", y2="50%", class_="whisker"))
        ends = [start, end] if high <= full else [start]  # one that goes on outside has no end here
        pieces += [svg.element("line", x1=x, x2=x, y1="36%", y2="64%", class_="whisker") for x in ends]
    if mark is not None:
        x = _share(mark, full)
        pieces.append(svg.element("line", x1=x, x2=x, y1="4%", y2="96%", class_="predicted"))
    return _canvas(svg.titled("".join(pieces), title), 26)


def stacked(parts: Sequence[Part], full: float) -> str:
    """The parts beside each other, in order."""
    pieces, start = [], 0.0
    for part in parts:
        shape = svg.element(
            "rect", x=_share(start, full), width=_share(part.value, full), height="100%", class_=f"b-{part.kind} part"
        )
        pieces.append(svg.titled(shape, part.title))
        start += part.value
    return _canvas("".join(pieces), 30)


def _canvas(content: str, height: float) -> str:
    return svg.element("svg", content, width="100%", height=height, class_="bar")


def _share(value: float, full: float) -> str:
    return f"{min(max(100 * value / full, 0.0), 100.0):.2f}%" if full > 0 else "0%"
