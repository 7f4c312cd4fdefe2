"""Charts as inline SVG for the pages that kiloq writes: bars with a label and a value, and bars over an axis of bins.

No scripts and no library: a page must open offline, and these two forms say everything that our reports show. Colours
are those of kiloq.core.page; text takes the page's colour, so charts read on light and dark.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

from kiloq.core.page import COLOURS

WIDTH, LEFT, RIGHT = 760, 150, 110  # pixels: the whole, the labels before the bars, the values behind them
BAR, GAP = 16, 8
HEIGHT, BASE = 180, 40  # of a histogram, and of the labels under it


def bars(
    rows: Mapping[str, Sequence[float]], names: Sequence[str], shown: Callable[[float], str], label: str = "chart"
) -> str:
    """For each row a bar for each name, longest values to the right edge; values at their ends."""
    most = max((value for values in rows.values() for value in values), default=0) or 1
    scale = (WIDTH - LEFT - RIGHT) / most
    block = BAR * len(names) + GAP
    top = 20 * len(names) + GAP if len(names) > 1 else 0
    parts = [_open(top + block * len(rows), label), *(_legend(names) if len(names) > 1 else [])]
    for row, (name, values) in enumerate(rows.items()):
        y = top + block * row
        middle = y + BAR * len(names) / 2 + 4
        parts.append(f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end">{html.escape(name[:22])}</text>')
        for at, value in enumerate(values):
            place, width = y + BAR * at, value * scale
            parts.append(f'<rect x="{LEFT}" y="{place}" width="{width:.1f}" height="{BAR - 2}" fill="{_colour(at)}"/>')
            parts.append(
                f'<text x="{LEFT + width + 5:.1f}" y="{place + BAR - 4}" font-size="11">{html.escape(shown(value))}</text>'
            )
    return "".join([*parts, "</svg>"])


def histogram(bins: Mapping[str, Sequence[float]], names: Sequence[str], label: str = "chart") -> str:
    """Upright bars over the bins, the parts of a bin on top of each other; every few bins are labelled."""
    most = max((sum(values) for values in bins.values()), default=0) or 1
    wide = (WIDTH - 60) / max(1, len(bins))
    parts = [_open(HEIGHT + BASE + 20 * len(names), label), *_legend(names)]
    floor = HEIGHT + 20 * len(names)
    every = max(1, -(-len(bins) // 12))
    for at, (name, values) in enumerate(bins.items()):
        x, y = 50 + at * wide, float(floor)
        for part, value in enumerate(values):
            tall = value / most * (HEIGHT - 20)
            y -= tall
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(1, wide - 1):.1f}" height="{tall:.1f}" fill="{_colour(part)}"/>'
            )
        if at % every == 0:
            parts.append(f'<text x="{x:.1f}" y="{floor + 14}" font-size="11">{html.escape(name)}</text>')
    parts.append(f'<text x="44" y="{floor - HEIGHT + 24}" font-size="11" text-anchor="end">{most:,.0f}</text>')
    parts.append(f'<line x1="50" x2="{WIDTH - 10}" y1="{floor}" y2="{floor}" stroke="#8888"/>')
    return "".join([*parts, "</svg>"])


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str) -> str:
    """A whole SVG file: for each name the points (x, y) joined by a line, over axes from the smallest to the largest."""
    place, parts = _axes([point for line in lines.values() for point in line], across, up)
    for at, (name, line) in enumerate(lines.items()):
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{_colour(at)}" stroke-width="1.5"/>')
        parts.append(f'<text x="{WIDTH - 150}" y="{36 + 18 * at}" fill="{_colour(at)}">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>\n"])


def points(found: Sequence[tuple[float, float]], across: str, up: str) -> str:
    """A dot for each (x, y), and the line where both are equal."""
    ends = [min(map(min, found), default=0.0), max(map(max, found), default=0.0)]
    place, parts = _axes([*found, *zip(ends, ends, strict=True)], across, up)
    (x1, y1), (x2, y2) = (place(end, end) for end in ends)
    parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#8888"/>')
    for point in found:
        x, y = place(*point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_colour(0)}"/>')
    return "".join([*parts, "</svg>\n"])


def _axes(
    points: Sequence[tuple[float, float]], across: str, up: str
) -> tuple[Callable[[float, float], tuple[float, float]], list[str]]:
    """Where a point goes, and the beginning of a picture whose axes go from the smallest to the largest."""
    points = points or [(0.0, 0.0)]
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)
    tall, left = 340, 60

    def place(x: float, y: float) -> tuple[float, float]:
        wide = (x - low_x) / ((high_x - low_x) or 1) * (WIDTH - left - 20)
        return left + wide, 20 + tall - (y - low_y) / ((high_y - low_y) or 1) * tall

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall + 60}" font-size="12" font-family="sans-serif">'
    ]
    for step in range(5):
        value = low_y + (high_y - low_y) * step / 4
        _, y = place(low_x, value)
        parts.append(f'<line x1="{left}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#888">{value:.4g}</text>')
        value = low_x + (high_x - low_x) * step / 4
        x, _ = place(value, low_y)
        shown = f"{value:,.0f}" if high_x - low_x >= 10 else f"{value:.4g}"
        parts.append(f'<text x="{x:.1f}" y="{tall + 36}" text-anchor="middle" fill="#888">{shown}</text>')
    parts.append(
        f'<text x="{WIDTH / 2:.0f}" y="{tall + 54}" text-anchor="middle" fill="#888">{html.escape(across)}</text>'
    )
    parts.append(f'<text x="{left}" y="12" fill="#888">{html.escape(up)}</text>')
    return place, parts


def _open(height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(label)}" font-size="12">'


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for at, name in enumerate(names):
        parts.append(f'<rect x="{LEFT}" y="{4 + 20 * at}" width="12" height="12" fill="{_colour(at)}"/>')
        parts.append(f'<text x="{LEFT + 18}" y="{14 + 20 * at}">{html.escape(name)}</text>')
    return parts


def _colour(at: int) -> str:
    return COLOURS[at % len(COLOURS)]
