"""Line charts as SVG text, for results that are curves; a few dozen lines instead of a library.

Axes are linear and start at zero, so that a flat line looks flat and a proportional one looks straight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 460, 320  # of one chart, pixels
LEFT, RIGHT, TOP, BOTTOM = 62, 26, 34, 64
COLOURS = ("#1f5fa8", "#c2571a", "#3b7d3b", "#7a4a9e")
STEPS = (1, 2, 2.5, 5, 10)  # a distance between two ticks is one of these times a power of ten
TICKS = 5  # about as many on an axis


def page(charts: Sequence[str]) -> str:
    """Charts side by side, as a complete SVG file."""
    moved = (f'<g transform="translate({at * WIDTH} 0)">{chart}</g>' for at, chart in enumerate(charts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(charts)}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(moved)}</svg>\n'
    )


def line_chart(title: str, x_label: str, y_label: str, lines: dict[str, Points]) -> str:
    """One chart as a group of SVG elements; `lines` are named in the legend below it."""
    every = [point for points in lines.values() for point in points]
    x_ticks, y_ticks = (_ticks(max(point[axis] for point in every)) for axis in (0, 1))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + wide * x / x_ticks[-1], TOP + high * (1 - y / y_ticks[-1])

    parts = [_text(WIDTH / 2, 18, title, "middle", bold=True)]
    for value in y_ticks:
        x, y = place(0, value)
        parts.append(f'<line x1="{x}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(x - 6, y + 4, f"{value:,g}", "end"))
    for value in x_ticks:
        x, y = place(value, 0)
        parts.append(_text(x, y + 16, f"{value:,.6g}", "middle"))
    parts.append(_text(LEFT, TOP - 4, y_label, "end"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - BOTTOM + 32, x_label, "end"))
    for at, (name, points) in enumerate(lines.items()):
        colour = COLOURS[at % len(COLOURS)]
        places = [place(x, y) for x, y in points]
        parts.append(_line(places, colour))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        legend = LEFT + at * wide / len(lines)
        parts.append(f'<rect x="{legend}" y="{HEIGHT - 22}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(legend + 16, HEIGHT - 12, name, "start"))
    return "".join(parts)


def _line(places: Sequence[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _text(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _ticks(largest: float) -> list[float]:
    """Round values from 0 to at least `largest`."""
    least = max(largest, 1e-9) / TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in STEPS if power * factor >= least * (1 - 1e-9))
    return [step * at for at in range(math.ceil(largest / step - 1e-9) + 1)]
