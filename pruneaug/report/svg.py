"""Small pieces of SVG: elements, scales, marks. Coordinates are user units; colours are the page's CSS classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Mark = Callable[[float, float, float], str]


def element(tag: str, content: str = "", /, **attributes: object) -> str:
    """`<tag attribute="...">content</tag>`. Attributes are escaped, `content` is markup already.

    `class_` writes `class`, other underscores write hyphens, None leaves an attribute out.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{written}>{content}</{tag}>"


def text(x: float, y: float, words: str, **attributes: object) -> str:
    return element("text", escape(words), x=x, y=y, **attributes)


def titled(shape: str, title: str, **attributes: object) -> str:
    """A group that shows `title` under the pointer and says it to a screen reader."""
    return element("g", element("title", escape(title)) + shape, **attributes)


def _plain(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Scale:
    """The linear map of [low, high] onto the pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """About `wanted` round values (1, 2 or 5 times a power of ten apart) within [low, high]; needs low < high."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [factor * power for factor in (1, 2, 5, 10)]
    best = next(index for index, step in enumerate(steps) if step >= raw * 0.999)
    found: list[float] = []
    while not found:  # a step longer than the range may have no multiple in it
        step, best = steps[best], best - 1
        first = math.ceil(low / step - 1e-9)
        found = [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
    return found


def tick_labels(values: Sequence[float]) -> list[str]:
    """The values with as many decimals as tell neighbours apart."""
    step = values[1] - values[0] if len(values) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{decimals}f}".replace("-", "−") for value in values]


def circle(x: float, y: float, radius: float) -> str:
    return element("circle", cx=x, cy=y, r=radius)


def _polygon(x: float, y: float, radius: float, corners: Sequence[tuple[float, float]]) -> str:
    return element("polygon", points=" ".join(f"{x + radius * dx:.1f},{y + radius * dy:.1f}" for dx, dy in corners))


def diamond(x: float, y: float, radius: float) -> str:
    return _polygon(x, y, radius, [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)])


def square(x: float, y: float, radius: float) -> str:
    return _polygon(x, y, radius, [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)])


def triangle(x: float, y: float, radius: float) -> str:
    return _polygon(x, y, radius, [(0, -1.15), (1.1, 0.8), (-1.1, 0.8)])


def triangle_down(x: float, y: float, radius: float) -> str:
    return _polygon(x, y, radius, [(0, 1.15), (1.1, -0.8), (-1.1, -0.8)])


def star(x: float, y: float, radius: float) -> str:
    angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
    reach = [1.6 if index % 2 == 0 else 0.7 for index in range(10)]
    return _polygon(x, y, radius, [(r * math.cos(a), r * math.sin(a)) for r, a in zip(reach, angles, strict=True)])


def cross(x: float, y: float, radius: float) -> str:
    r = 0.85 * radius
    return element(
        "path", d=f"M{x - r:.1f} {y - r:.1f}L{x + r:.1f} {y + r:.1f}M{x - r:.1f} {y + r:.1f}L{x + r:.1f} {y - r:.1f}"
    )


def dash(x: float, y: float, radius: float) -> str:
    """A short level stroke: a line of the chart."""
    return element("path", d=f"M{x - 1.6 * radius:.1f} {y:.1f}H{x + 1.6 * radius:.1f}")


def bar(x: float, y: float, radius: float) -> str:
    """A short upright stroke: a value on one axis whose other value is not known."""
    return element("path", d=f"M{x:.1f} {y - radius:.1f}V{y + radius:.1f}")
