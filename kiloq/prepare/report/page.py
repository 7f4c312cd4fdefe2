"""report.html of a prepared corpus: the funnel, why documents went, what is left of whom, and texts to look at.

One file, no scripts, nothing from elsewhere. Documents of strangers are shown, so every text is escaped, and control
characters are shown as what they are.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

from kiloq.core.chart import bars, histogram
from kiloq.core.display import neutralise
from kiloq.core.mixture import BLOCK
from kiloq.core.page import cell, page
from kiloq.prepare.dedup.lsh import curve
from kiloq.prepare.mix import Size
from kiloq.prepare.pipeline.funnel import Funnel
from kiloq.prepare.pipeline.tally import SAMPLES

MAX_REASONS, MAX_ROWS = 12, 30  # in a table; ours
STYLE = "<style>.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}.pair pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.8rem;max-height:16rem;overflow:auto;border:1px solid #8886;padding:.5rem;margin:.2rem 0}.why{font-size:.85rem;color:#b33}</style>"


def report_page(funnel: Funnel) -> str:
    """The HTML of a run's report."""
    parts = [
        STYLE,
        _summary(funnel),
        "<h2>Documents left after each step</h2>",
        bars({label: [counts["documents out"]] for label, counts in funnel.steps()}, ["documents"], "{:,.0f}".format,
             "documents left after each step"),
        _steps(funnel),
        "<h2>Why documents went</h2>",
        *_reasons(funnel),
        *_sizes("Sources", funnel.by("source")),
        *_sizes("Languages", funnel.by("language")),
        *_mix(funnel),
        *_scores(funnel),
        *_clusters(funnel),
        "<h2>Kept and dropped, side by side</h2>",
        *_samples(funnel),
    ]  # fmt: skip
    return neutralise(page(f"{funnel.recipe.name}: from raw to prepared", "\n".join(parts)))


def megabytes(size: float) -> str:
    """A size for people: 10^6 bytes."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = ["".join(cell(name, number=at > 0, head=True) for at, name in enumerate(head))]
    lines += ["".join(cell(value, number=at > 0) for at, value in enumerate(row)) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _summary(funnel: Funnel) -> str:
    return (
        f"<p>{funnel.documents_in:,} documents were read, {funnel.documents_out:,} are kept "
        f"({_share(funnel.documents_out, funnel.documents_in)}, {megabytes(funnel.bytes_out)} of text). "
        f"All others lie in <code>removed/</code>, each with its reason.</p>"
    )


def _steps(funnel: Funnel) -> str:
    rows = []
    for label, counts in funnel.steps():
        came, went = counts["documents in"], counts["documents in"] - counts["documents out"]
        rows.append(
            [
                label,
                f"{came:,}",
                f"{went:,}",
                _share(went, came),
                f"{counts['documents out']:,}",
                megabytes(counts["bytes out"]),
            ]
        )
    return _table(["step", "in", "removed", "of them", "out", "text left"], rows)


def _reasons(funnel: Funnel) -> list[str]:
    parts = []
    for label, _ in funnel.steps():
        reasons, edits = funnel.tally.reasons.get(label), funnel.tally.edits.get(label)
        for title, counts in (("removed", reasons), ("changed", edits)):
            if counts:
                rows = [
                    [reason, f"{count:,}"]
                    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
                ]
                rest = f"<p>and {len(rows) - MAX_REASONS} more in funnel.json</p>" if len(rows) > MAX_REASONS else ""
                parts.append(f"<h3>{html.escape(label)}: {title}</h3>{_table(['', 'count'], rows[:MAX_REASONS])}{rest}")
    return parts or ["<p>Nothing was removed.</p>"]


def _sizes(title: str, found: Mapping[str, Mapping[str, Size]]) -> list[str]:
    shown = dict(list(found.items())[:MAX_ROWS])
    more = f"<p>and {len(found) - MAX_ROWS} smaller ones in funnel.json</p>" if len(found) > MAX_ROWS else ""
    rows = [
        [
            name,
            f"{both['read'].documents:,}",
            f"{both['kept'].documents:,}",
            megabytes(both["read"].bytes),
            megabytes(both["kept"].bytes),
        ]
        for name, both in shown.items()
    ]
    return [
        f"<h2>{title}</h2>",
        bars({name: [both["read"].bytes, both["kept"].bytes] for name, both in shown.items()}, ["read", "kept"], megabytes,
             f"{title}: bytes read and kept"),
        _table(["", "documents read", "kept", "read", "kept"], rows),
        more,
    ]  # fmt: skip


def _mix(funnel: Funnel) -> list[str]:
    rows = [
        [
            part.source,
            megabytes(part.size.bytes),
            f"{part.epochs:.2f}",
            f"{part.share:.1%}",
            f"{part.places / BLOCK:.1%}",
        ]
        for part in funnel.mix()
    ]
    return (
        ["<h2>The mix</h2>", _table(["source", "text", "epochs", "of the bytes", "of the draws"], rows)] if rows else []
    )


def _scores(funnel: Funnel) -> list[str]:
    parts = []
    for column, counts in sorted(funnel.tally.scores.items()):
        names = sorted({key.split(" ", 1)[1] for key in counts}, key=lambda name: (name == "nan", float(name), name))
        bins = {name: [counts[f"kept {name}"], counts[f"removed {name}"]] for name in names}
        parts.append(f"<h3>{html.escape(column)}</h3>")
        parts.append(histogram(bins, ["kept", "removed"], f"documents by {column}"))
    return ["<h2>Scores</h2><p>Each bar is named by its lower edge.</p>", *parts] if parts else []


def _clusters(funnel: Funnel) -> list[str]:
    parts = []
    for label, sizes in funnel.clusters.items():
        step = funnel.recipe.step[funnel.recipe.labels.index(label) - 1]
        rows = {f"{size} documents": [float(count)] for size, count in sorted(sizes.items())[:MAX_ROWS]}
        parts.append(f"<h2>{html.escape(label)}: clusters of near copies</h2>")
        parts.append(
            f"<p>{sum(sizes.values()):,} clusters hold {sum(size * count for size, count in sizes.items()):,} documents.</p>"
        )
        parts.append(bars(rows, ["clusters"], "{:,.0f}".format, "clusters by size") if rows else "")
        points = {f"{similarity:.0%} alike": [chance] for similarity, chance in curve(step.bands, step.rows)}
        parts.append("<p>How likely two documents of a similarity (Jaccard, of their shingles) are to be found:</p>")
        parts.append(bars(points, ["found"], "{:.1%}".format, "probability of being found by similarity"))
    return parts


def _samples(funnel: Funnel) -> list[str]:
    kept = funnel.tally.samples.get("kept", [])
    parts = []
    for label, _ in funnel.steps():
        dropped = funnel.tally.samples.get(label, [])
        if not dropped:
            continue
        pairs = list(zip_longest(kept, dropped))[: min(SAMPLES, len(dropped))]
        parts.append(f"<details><summary>{html.escape(label)}: {len(pairs)} of its documents</summary>")
        parts += [f'<div class="pair"><div>{_text(left)}</div><div>{_text(right)}</div></div>' for left, right in pairs]
        parts.append("</details>")
    return parts or [f'<div class="pair"><div>{_text(row)}</div></div>' for row in kept]


def _text(row: Sequence[str] | None) -> str:
    if row is None:
        return ""
    _, name, reason, text = row
    why = f'<div class="why">{html.escape(reason)}</div>' if reason else "<div>kept</div>"
    return f"<b>{html.escape(name)}</b>{why}<pre>{html.escape(text)}</pre>"
