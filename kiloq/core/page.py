"""The frame of every HTML page that kiloq writes: one file, no scripts, nothing from elsewhere, light and dark."""

from __future__ import annotations

import html

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse}th,td{padding:.15rem .9rem .15rem 0;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}svg text{fill:currentColor}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16181c}}"""

# Told apart on both backgrounds and by people who do not see all colours (Okabe and Ito 2008, grey for black and yellow).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7f7f7f")


def page(title: str, body: str) -> str:
    """A whole document; `title` is text, `body` is HTML that follows the heading."""
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>{name}</title><style>{STYLE}</style></head>\n<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def cell(value: str, *, number: bool = False, head: bool = False) -> str:
    """One cell of a table, its text escaped."""
    tag = "th" if head else "td"
    return f"<{tag}{' class=n' if number else ''}>{html.escape(value)}</{tag}>"
