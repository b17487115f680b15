"""Small charts as SVG in the page itself: they take the page's colours, light or dark, and its fonts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from whence.report.base import data_address, environment
from whence.report.words import visible

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 30, 44  # room for ticks and labels
MAX_POINTS = 400  # of a line; more is no different at this size
Place = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """A named line.

    Attributes:
        marked: its points are drawn.
        joined: a line goes through them.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marked: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Figure:
    """A chart or picture of a page; ``wide`` takes a row for itself."""

    content: Markup
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Tick:
    """Where a tick stands in pixels, and what it says."""

    at: float
    text: str


def picture(png: bytes, caption: str) -> Figure:
    """A PNG file as a figure."""
    image = Markup('<img src="{}" alt="{}">').format(data_address("image/png", png), visible(caption))
    return Figure(image, caption, wide=True)


def line_chart(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, log_x: bool = False, log_y: bool = False
) -> Markup:
    """Lines over a common scale; values that a logarithmic scale cannot show are left out.

    Args:
        title: for those who do not see the picture.
    """
    kept = [(line, points) for line in lines if (points := _points(line, log_x, log_y))]
    if not kept:
        return Markup("")
    xs, ys = zip(*(point for _, points in kept for point in points), strict=True)
    x, x_ticks = _axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log_x)
    y, y_ticks = _axis(min(ys) if log_y else min(0.0, *ys), max(ys), HEIGHT - BOTTOM, TOP, log_y)
    chart = {
        "title": title, "x_label": x_label, "y_label": y_label, "width": WIDTH, "height": HEIGHT,
        "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM, "top": TOP,
        "x_ticks": x_ticks, "y_ticks": y_ticks,
        "lines": [
            {"name": line.name, "marked": line.marked, "joined": line.joined,
             "points": [(round(x(a), 1), round(y(b), 1)) for a, b in points]}
            for line, points in kept
        ],
    }  # fmt: skip
    drawn: Markup = environment().get_template("charts.html").module.line_chart(chart)  # type: ignore[attr-defined]
    return drawn


def _points(line: Line, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    """What can be drawn of a line, thinned out."""
    points = [
        (a, b)
        for a, b in zip(line.x, line.y, strict=True)
        if math.isfinite(a) and math.isfinite(b) and (a > 0 or not log_x) and (b > 0 or not log_y)
    ]
    chosen = np.unique(np.linspace(0, max(len(points) - 1, 0), min(len(points), MAX_POINTS)).astype(int))
    return [points[i] for i in chosen.tolist()]


def _axis(low: float, high: float, start: float, end: float, log: bool) -> tuple[Place, list[Tick]]:
    """Where in pixels a value stands between ``start`` and ``end``, and the axis's ticks."""
    unit: Place = math.log10 if log else float
    scaled = _scale(unit(low), unit(high), start, end)

    def place(value: float) -> float:
        return scaled(unit(value))

    return place, [Tick(place(value), _short(value)) for value in (_decades if log else _steps)(low, high)]


def _scale(low: float, high: float, start: float, end: float) -> Place:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _steps(low: float, high: float) -> list[float]:
    """About five round values from ``low`` to ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**power for power in powers][:: max(1, len(powers) // 6)]


def _short(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-4):
        power = math.floor(math.log10(abs(value)) + 1e-9)
        factor = value / 10.0**power
        text = f"10{_superscript(power)}"
        return text if abs(factor - 1) < 1e-6 else f"{factor:.3g}×{text}"
    return f"{value:,.6g}"


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
