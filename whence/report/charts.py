"""Small charts as SVG in the page itself: they take the page's colours, light or dark, and its fonts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from whence.report.templating import environment

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 14, 44  # room for ticks and labels
Place = Callable[[float], float]
MAX_POINTS = 400  # of a line; more is no different at this size


@dataclass(frozen=True)
class Line:
    """A named line; ``marked`` draws its points as well."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marked: bool = False


@dataclass(frozen=True)
class Tick:
    """Where a tick stands in pixels, and what it says."""

    at: float
    text: str


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], *, log_y: bool = False) -> Markup:
    """Lines over a common scale; values that a logarithmic scale cannot show are left out.

    Args:
        title: for those who do not see the picture.
    """
    kept = [line for line in (_drawable(line, log_y) for line in lines) if len(line.x)]
    if not kept:
        return Markup("")
    x_low, x_high = min(min(line.x) for line in kept), max(max(line.x) for line in kept)
    values = [value for line in kept for value in line.y]
    low, high = (min(values), max(values)) if log_y else (min(0.0, *values), max(values))
    x = _scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    unit: Place = math.log10 if log_y else float
    scaled = _scale(unit(low), unit(high), HEIGHT - BOTTOM, TOP)

    def y(value: float) -> float:
        return scaled(unit(value))

    return _render(
        title=title,
        x_label=x_label,
        y_label=y_label,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        bottom=HEIGHT - BOTTOM,
        top=TOP,
        x_ticks=[Tick(x(value), _short(value)) for value in _steps(x_low, x_high)],
        y_ticks=[Tick(y(value), _short(value)) for value in (_decades if log_y else _steps)(low, high)],
        lines=[
            (
                line.name,
                line.marked,
                [(round(x(a), 1), round(y(b), 1)) for a, b in zip(line.x, line.y, strict=True)],
            )
            for line in kept
        ],
    )


def _render(**values: object) -> Markup:
    return Markup(environment().get_template("report/line_chart.svg").render(**values))


def _drawable(line: Line, log_y: bool) -> Line:
    points = [
        (a, b)
        for a, b in zip(line.x, line.y, strict=True)
        if math.isfinite(a) and math.isfinite(b) and (b > 0 or not log_y)
    ]
    chosen = np.unique(np.linspace(0, max(len(points) - 1, 0), min(len(points), MAX_POINTS)).astype(int)).tolist()
    return Line(line.name, [points[i][0] for i in chosen], [points[i][1] for i in chosen], line.marked)


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
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        power = math.floor(math.log10(abs(value)) + 1e-9)
        factor = value / 10.0**power
        text = f"10{_superscript(power)}"
        return text if abs(factor - 1) < 1e-6 else f"{factor:.3g}×{text}"
    return f"{value:,.6g}"


def _superscript(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
