"""Small charts as inline SVG; colours come from the page, so that both of its themes have their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 42
MARKS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True)
class Point:
    """A value with its 95% interval, and for scatters one of x too."""

    x: float
    y: float
    y_interval: tuple[float, float] | None = None
    x_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        ticks: value -> what stands there.
    """

    label: str
    low: float
    high: float
    ticks: Mapping[float, str]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Between 0 and 1."""
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = (math.log(max(x, 1e-9)) for x in (value, low, high))
        return min(max((value - low) / (high - low), 0.0), 1.0)


def shares() -> Axis:
    """From nothing to all."""
    return Axis("", 0.0, 1.0, {x / 4: f"{25 * x}%" for x in range(5)})


def percents(label: str, low: float) -> Axis:
    """From a share below 1 to all."""
    return Axis(
        label,
        low,
        1.0,
        {low + x / 4 * (1 - low): f"{100 * (low + x / 4 * (1 - low)):.3g}%" for x in range(5)},
    )


def numbers(label: str, values: Sequence[float]) -> Axis:
    """Whole numbers, of which no more are written than fit."""
    low, high = math.floor(min(values)), math.ceil(max(values))
    step = max(1, math.ceil((high - low) / 10))
    ticks = {float(x): str(x) for x in range(low, high + 1, step)}
    return Axis(label, low - 0.4, high + 0.4, ticks)


def powers(label: str, values: Sequence[float]) -> Axis:
    """Costs, on a logarithmic scale of powers of two."""
    low = math.floor(math.log2(max(min(values), 0.25)))
    high = max(math.ceil(math.log2(max(max(values), 0.5))), low + 1)
    ticks = {2.0**x: f"{2.0**x:g}" for x in range(low, high + 1)}
    return Axis(label, 2.0**low, 2.0**high, ticks, logarithmic=True)


def chart(
    title: str,
    series: Sequence[Sequence[Point]],
    x: Axis,
    y: Axis,
    *,
    joined: bool = True,
    diagonal: bool = False,
) -> str:
    """Lines, or single points, with their intervals; series s has the classes ``s`` and ``s{s}``.

    Args:
        title: read aloud in place of the picture.
        diagonal: draw the line on which both values are the same.
    """
    parts = [_frame(x, y)]
    if diagonal:
        ends = [(_x(x, value), _y(y, value)) for value in (max(x.low, y.low), min(x.high, y.high))]
        parts.append(
            f'<line class="grid same" x1="{ends[0][0]:.1f}" y1="{ends[0][1]:.1f}" '
            f'x2="{ends[1][0]:.1f}" y2="{ends[1][1]:.1f}"/>'
        )
    for number, points in enumerate(series):
        colour = f"s s{number % 8}"
        spots = [(_x(x, p.x), _y(y, p.y)) for p in points]
        for point, (px, py) in zip(points, spots, strict=True):
            parts += _whiskers(point, px, py, x, y, colour)
        if joined and len(spots) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in spots)
            dash = ' stroke-dasharray="6 3"' if number >= 8 else ""
            parts.append(f'<polyline class="{colour}" points="{path}"{dash}/>')
        parts += [mark(number, px, py) for px, py in spots]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def mark(number: int, x: float, y: float, size: float = 3.5) -> str:
    """The sign of a series, which tells it apart without its colour."""
    colour, kind = f"m s{number % 8}", MARKS[number % len(MARKS)]
    if kind == "circle":
        return f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    corners = {
        "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "diamond": ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
        "triangle": ((0, -1.3), (1.2, 1), (-1.2, 1)),
    }[kind]
    path = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon class="{colour}" points="{path}"/>'


def key(number: int) -> str:
    """The sign of a series for the legend."""
    dash = ' stroke-dasharray="6 3"' if number >= 8 else ""
    line = f'<polyline class="s s{number % 8}" points="1,7 25,7"{dash}/>'
    return (
        f'<svg class="key" viewBox="0 0 26 14" aria-hidden="true">{line}{mark(number, 13, 7)}</svg>'
    )


def heatmap(title: str, table: Mapping[int, Mapping[int, int]]) -> str:
    """How often each number (columns) was found where each was wanted (rows), as shares of the row."""
    rows = sorted(table)
    columns = list(range(max(max(max(found) for found in table.values()), max(rows)) + 1))
    side, left, top = 17, 34, 18
    width, height = left + side * len(columns) + 4, top + side * len(rows) + 18
    parts = []
    for place, wanted in enumerate(rows):
        found, y = table[wanted], top + side * place
        total = sum(found.values())
        parts.append(f'<text x="{left - 5}" y="{y + 12}" text-anchor="end">{wanted}</text>')
        for column in columns:
            share, x = found.get(column, 0) / total, left + side * column
            right = " right" if column == wanted else ""
            tip = f"wanted {wanted}, found {column}: {found.get(column, 0)} of {total}"
            parts.append(
                f'<rect class="cell{right}" x="{x + 0.5}" y="{y + 0.5}" width="{side - 1}" '
                f'height="{side - 1}" fill-opacity="{share:.2f}"><title>{tip}</title></rect>'
            )
    for column in columns:
        centre = left + side * column + side / 2
        parts.append(f'<text x="{centre}" y="{top - 5}" text-anchor="middle">{column}</text>')
    middle = left + side * len(columns) / 2
    parts.append(
        f'<text x="{middle}" y="{height - 4}" text-anchor="middle">found (columns), wanted (rows)</text>'
    )
    return (
        f'<svg class="heat" viewBox="0 0 {width} {height}" style="max-width:{1.4 * width:.0f}px" '
        f'role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _frame(x: Axis, y: Axis) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value, text in y.ticks.items():
        at = _y(y, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{escape(text)}</text>')
    for value, text in x.ticks.items():
        at = _x(x, value)
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>'
    )
    return "".join(parts)


def _whiskers(point: Point, px: float, py: float, x: Axis, y: Axis, colour: str) -> list[str]:
    parts = []
    if point.y_interval:
        low, high = (_y(y, value) for value in point.y_interval)
        parts.append(
            f'<line class="{colour} ci" x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        )
    if point.x_interval:
        low, high = (_x(x, value) for value in point.x_interval)
        parts.append(
            f'<line class="{colour} ci" y1="{py:.1f}" y2="{py:.1f}" x1="{low:.1f}" x2="{high:.1f}"/>'
        )
    return parts
