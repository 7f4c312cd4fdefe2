"""report.html: one self-contained page with the error of every matrix as a chart and the perplexity before and after.

No scripts and nothing from elsewhere; the numbers are in `quantisation.json` beside it. Errors span decades, so the
chart's scale is logarithmic.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

from kiloq.core.page import COLOURS, page

WIDTH, HEIGHT, LEFT, BOTTOM = 760, 320, 60, 34  # pixels


def report_page(name: str, figures: Mapping[str, Any]) -> str:
    """The page. `figures` is what `quantisation.json` holds."""
    rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>" for key, value in
                   {**figures["settings"], **figures["run"]}.items())  # fmt: skip
    errors = figures["errors"]
    return page(
        f"Quantisation of {name}",
        "\n".join([
            _perplexity(figures["perplexity"]), "<h2>Error by layer</h2><p>Squared error of "
            f"{html.escape(figures['error_of'])}, relative to the squared values; lower is better.</p>",
            chart(errors), _table(errors), f"<h2>Settings and run</h2><table>{rows}</table>",
        ]),
    )  # fmt: skip


def _perplexity(figures: Mapping[str, Any]) -> str:
    if figures["before"] is None:
        return "<p>Perplexity was not measured: there was no text (give --calibration or --eval).</p>"
    return (
        f"<table><tr><th>perplexity</th><th>before</th><th>after</th><th>change</th></tr>"
        f"<tr><td>{html.escape(figures['text'])}, {figures['tokens']:,} tokens</td>"
        f'<td class="n">{figures["before"]:.3f}</td><td class="n">{figures["after"]:.3f}</td>'
        f'<td class="n">{100 * (figures["after"] / figures["before"] - 1):+.2f} %</td></tr></table>'
    )


def chart(errors: list[dict[str, float]]) -> str:
    """Inline SVG: one line for each kind of matrix over the layers, logarithmic."""
    values = [value for layer in errors for value in layer.values() if value > 0]
    if not values:
        return "<p>There is no error at all.</p>"
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def x(layer: int) -> float:
        return LEFT + (WIDTH - LEFT - 160) * layer / max(1, len(errors) - 1)

    def y(value: float) -> float:
        place = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return 10 + (HEIGHT - BOTTOM - 10) * (1 - place)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="error by layer" font-size="13">']
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 160}" y1="{at:.1f}" y2="{at:.1f}" stroke="#8884"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">1e{power}</text>')
    for layer in range(0, len(errors), max(1, len(errors) // 8)):
        parts.append(f'<text x="{x(layer):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{layer}</text>')
    for kind, (name, colour) in enumerate(zip(errors[0], COLOURS, strict=True)):
        points = " ".join(f"{x(at):.1f},{y(layer[name]):.1f}" for at, layer in enumerate(errors))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{WIDTH - 150}" y="{24 + 20 * kind}" fill="{colour}">{name}</text>')
    return "".join([*parts, "</svg>"])


def _table(errors: list[dict[str, float]]) -> str:
    head = "".join(f"<th>{name.rpartition('.')[2]}</th>" for name in errors[0])
    rows = "".join(
        f"<tr><td>{at}</td>" + "".join(f'<td class="n">{value:.2e}</td>' for value in layer.values()) + "</tr>"
        for at, layer in enumerate(errors)
    )
    return f"<details><summary>Numbers</summary><table><tr><th>layer</th>{head}</tr>{rows}</table></details>"
