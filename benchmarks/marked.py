"""Pages with tables that programs write: each between two markers, so that a check can say whether they are up to date."""

from __future__ import annotations

from pathlib import Path


def filled(page: Path, text: str, begin: str, end: str, table: str) -> str:
    """`text`, which is that of `page`, with the table between two markers."""
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"{page.name} has no markers {begin.strip()} and {end.strip()}")
    return f"{head}{begin}{table}{end}{tail}"


def write_or_check(page: Path, wanted: str, check: bool) -> int:
    """Write the page; or, with `check`, leave it and return 1 if it says something else."""
    if check:
        return int(page.read_text(encoding="utf-8") != wanted)
    page.write_text(wanted, encoding="utf-8")
    return 0
