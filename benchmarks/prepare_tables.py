"""The measured tables of docs/prepare.md from the newest result files, between their markers.

    python benchmarks/prepare_tables.py             writes the page
    python benchmarks/prepare_tables.py --check     exit code 1 where it says something else than the files

A table whose result file is not there stays empty. What 3 trillion tokens need is computed from the largest size of
prepare_scaling.py, by the formulas that stand in the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import marked
from record import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "prepare.md"
BEGIN, END = "<!-- begin: python benchmarks/prepare_tables.py {name} -->\n", "<!-- end: {name} -->\n"
TOKENS = 3e12
HOURS_A_DAY, WORKERS = 24, 1_000
PART_MB = 4_000  # of input: the parts of such a run
GROUP_KEYS = 4_000_000  # kiloq.prepare.pipeline.run

Figures = dict[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]]) + "\n"


def extraction(figures: Figures) -> str:
    """Peers in rows: words of their answers against the gold texts, and speed."""
    count = figures["extraction"]["pages"]
    peers = {name: row for name, row in figures["extraction"].items() if name != "pages"}
    sets = [f"{name.replace('_', ' ')}, {pages} pages: precision / recall / F1" for name, pages in count.items()]
    first = next(iter(count))
    rows = [
        [name, *(_three(row[label]) for label in count), f"{row['pages_per_cpu_s']:.0f}"]
        for name, row in sorted(peers.items(), key=lambda item: -item[1][first]["f1"])
    ]
    return table(["main text", *sets, "pages/CPU-s"], rows)


def _three(row: Figures) -> str:
    return " / ".join(f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))


def languages(figures: Figures) -> str:
    """Peers in rows, sets of sentences in columns; then what the handbook's pages were called."""
    sets = {name: rows for name, rows in figures["language"].items() if name != "handbook"}
    first = next(iter(sets.values()))
    heads = [f"{name}: {rows['texts']:,} sentences" for name, rows in sets.items()]
    rows = [
        [peer, *(f"{found[peer]['accuracy']:.3f}" for found in sets.values()), f"{first[peer]['texts_per_cpu_s']:,}"]
        for peer in first
        if peer != "texts"
    ]
    shown = table(["language", *heads, "sentences/CPU-s"], rows)
    if found := figures["language"].get("handbook"):
        share = found["documents"]
        shown += (
            f"\nOf {share['count']:,} pages of a handbook in 26 folders, much of which is not translated, the step called "
            f"{share['folder']:.1%} by the folder's language, {share['English']:.1%} English and {share['another']:.1%} by "
            "another.\n"
        )
    return shown


def copies(figures: Figures) -> str:
    """Peers in rows, the two sets of planted near copies in columns."""
    names = {"en": "English", "zh": "Chinese"}
    heads = [
        f"{names[key]}, {row['documents']:,} documents: documents/CPU-s / recall / precision"
        for key, row in figures.items()
    ]
    peers = dict.fromkeys(name for row in figures.values() for name in row["peers"])
    rows = [[peer, *(_copies_of(row["peers"].get(peer)) for row in figures.values())] for peer in peers]
    return table(["near copies", *heads], rows)


def _copies_of(found: Figures | None) -> str:
    if found is None:
        return ""
    return f"{found['documents_per_cpu_s']:,} / {found['recall']:.3f} / {found['precision']:.3f}"


def filters(figures: Figures) -> str:
    """Steps in rows: what each drops of planted bad documents, and of good ones."""
    rows = [[name, f"{row['recall']:.1%}", f"{row['good dropped']:.1%}"] for name, row in figures["dropped"].items()]
    return table(["step alone", "bad documents dropped", "good ones dropped"], rows)


def encoding(figures: Figures) -> str:
    """Ways to ids in rows."""
    rows = [[name, f"{row['median']:.1f}"] for name, row in figures["MB per CPU-s"].items()]
    return table(["tokens", "MB of text/CPU-s"], rows)


def vocabulary(figures: Figures) -> str:
    """Trainers in rows."""
    rows = [
        [name, f"{row['cpu_s']['median']:.1f}", f"{row['peak_mb']:,.0f}"]
        for name, row in figures.items()
        if isinstance(row, dict)
    ]
    return table([f"{figures['tokens']:,} tokens from {figures['bytes'] / 1e6:.0f} MB", "CPU s", "peak MB"], rows)


def compression(figures: Figures) -> str:
    """Languages in rows, vocabularies in columns."""
    found = {language: row["tokenizers"] for language, row in figures["languages"].items()}
    names = list(next(iter(found.values())))
    rows = [[language, *(f"{row[name]['bytes_per_token']:.2f}" for name in names)] for language, row in found.items()]
    return table(["bytes a token", *names], rows)


def scaling(figures: Figures) -> str:
    """A row a size."""
    heads = (
        "input MB",
        "documents",
        "kept MB",
        "prepare wall / CPU s",
        "peak memory MB",
        "disk MB",
        "encode wall / CPU s",
    )
    rows = [
        [
            f"{size['input_mb']:.0f}",
            f"{size['documents']['read']:,}",
            f"{size['kept_mb']:.0f}",
            f"{size['prepare_wall_s']:.0f} / {size['prepare_cpu_s']:.0f}",
            f"{size['prepare_peak_pss_mb']:.0f}",
            f"{size['peak_folder_mb']:.0f}",
            f"{size['encode_wall_s']:.1f} / {size['encode_cpu_s']:.1f}",
        ]
        for size in figures["sizes"]
    ]
    fit = figures["growth"]["prepare_wall_s"]
    line = (
        f"A straight line, {fit['start_s']:.1f} s and {fit['s_per_mb']:.3f} s for each MB with {figures['workers']} workers, "
        f"is met within {fit['off_the_line']:.0%}."
    )
    return f"{table(heads, rows)}\n{line}\n"


def needs(figures: Figures) -> str:
    """What a corpus of TOKENS would take, each line with its formula."""
    size, grown = figures["sizes"][-1], figures["growth"]
    kept_mb = TOKENS * size["kept_mb"] / size["tokens"]
    input_mb = kept_mb * size["input_mb"] / size["kept_mb"]
    documents = kept_mb * size["documents"]["kept"] / size["kept_mb"]
    cpu_hours = input_mb * grown["prepare_cpu_s"]["s_per_mb"] / 3600
    encode_hours = input_mb * grown["encode_cpu_s"]["s_per_mb"] / 3600
    keys = {name: count * input_mb / size["input_mb"] for name, count in size["keys"].items()}
    key_mb = {name: mb * input_mb / size["input_mb"] for name, mb in size["keys_mb"].items()}
    parts = input_mb / PART_MB
    groups = sum(keys.values()) / GROUP_KEYS
    rows = [
        ("text that is kept", f"{kept_mb / 1e6:.1f} TB", f"tokens x {1e6 * size['kept_mb'] / size['tokens']:.2f} bytes"),
        ("input", f"{input_mb / 1e6:.0f} TB", f"x {size['input_mb'] / size['kept_mb']:.1f}, as here; web archives more"),
        ("documents", f"{documents:.1e}", f"{1e6 * size['kept_mb'] / size['documents']['kept']:,.0f} bytes each"),
        ("preparing", f"{cpu_hours:,.0f} CPU hours", f"{grown['prepare_cpu_s']['s_per_mb']:.3f} CPU-s for a MB of input"),
        ("", f"{cpu_hours / HOURS_A_DAY / WORKERS:.1f} days", f"on {WORKERS:,} cores, if storage keeps up"),
        ("encoding", f"{encode_hours:,.0f} CPU hours", f"{grown['encode_cpu_s']['s_per_mb']:.4f} CPU-s for a MB of input"),
        *((f"keys of {name}", f"{count:.1e}, {mb / 1e6:.2f} TB", f"{1e6 * mb / count:.1f} bytes each, packed")
          for (name, count), mb in zip(keys.items(), key_mb.values(), strict=True)),
        ("disk at the fullest", f"{size['peak_folder_mb'] * input_mb / size['input_mb'] / 1e6:.0f} TB", f"{size['peak_folder_mb'] / size['input_mb']:.2f} of the input"),
        ("shards", f"{TOKENS * 4 / 1e12:.0f} TB", "4 bytes a token"),
        ("parts", f"{parts:,.0f}", f"of {PART_MB // 1000} GB"),
        ("groups of keys", f"{groups:,.0f}", f"of {GROUP_KEYS:,}; each opens a file of every part: {parts * groups:.1e} reads"),
    ]  # fmt: skip
    return table([f"{TOKENS / 1e12:.0f} trillion tokens", "", "how"], rows)


TABLES: dict[str, tuple[str, Callable[[Figures], str]]] = {  # name of the markers -> (result file, table)
    "extraction": ("web", extraction),
    "languages": ("web", languages),
    "copies": ("dedup", copies),
    "filters": ("filters", filters),
    "encoding": ("encoding", encoding),
    "vocabulary": ("bpe-training", vocabulary),
    "compression": ("compression", compression),
    "scaling": ("prepare-scaling", scaling),
    "needs": ("prepare-scaling", needs),
}


def filled(text: str, results: Path) -> str:
    """`text` with every table between its markers, below it the file that it is from."""
    for name, (program, made) in TABLES.items():
        paths = sorted(results.glob(f"*-{program}.json"))  # names begin with the date
        shown = ""
        if paths:
            shown = made(json.loads(paths[-1].read_text())["figures"])
            shown += f"\nFrom [{program}](../benchmarks/results/{paths[-1].name}).\n"
        text = marked.filled(PAGE, text, BEGIN.format(name=name), END.format(name=name), shown)
    return text


def main(check: bool) -> int:
    """Replaces what lies between the markers, or compares it."""
    return marked.write_or_check(PAGE, filled(PAGE.read_text(encoding="utf-8"), RESULTS), check)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
