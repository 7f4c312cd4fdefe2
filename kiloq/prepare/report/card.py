"""The data card (README.md) of a prepared corpus: what is in it, where it comes from, what was done, and what to know.

The front matter follows Hugging Face's dataset cards (huggingface_hub documentation, "Dataset Cards"); the questions are
those of Gebru et al. 2021 (Datasheets for Datasets) that a pipeline can answer by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kiloq.core.display import neutralise
from kiloq.prepare.pipeline.funnel import Funnel
from kiloq.prepare.pipeline.recipe import plain
from kiloq.prepare.report.page import megabytes

MASKS, SCORERS = ("pii",), ("words", "classifier")  # steps that the card's notes ask about


def data_card(funnel: Funnel) -> str:
    """Markdown text."""
    languages = [name for name, both in funnel.by("language").items() if both["kept"].documents and name != "unknown"]
    front = ["---", "configs:", "- config_name: default", '  data_files: "documents/*.parquet"']
    if languages:
        front += ["language:", *(f"- {json.dumps(name)}" for name in languages)]
    parts = [
        *front, "---", "",
        f"# {_plain(funnel.recipe.name)}", "",
        f"{funnel.documents_out:,} documents, {megabytes(funnel.bytes_out)} of text, prepared by kiloq from "
        f"{funnel.documents_in:,} documents. Columns: `id`, `source`, `format`, `text`, `language`, `meta` (a JSON object), "
        "`number` (unique in the run), and the scores that steps have added.", "",
        "## Sources", "",
        *_table(["source", "read", "kept", "text kept"], [
            [_plain(name), f"{both['read'].documents:,}", f"{both['kept'].documents:,}", megabytes(both["kept"].bytes)]
            for name, both in funnel.by("source").items()
        ]),
        "## Languages", "",
        *_table(["language", "documents", "text"], [
            [_plain(name), f"{both['kept'].documents:,}", megabytes(both["kept"].bytes)]
            for name, both in funnel.by("language").items() if both["kept"].documents
        ]),
        "## What was done", "",
        *_table(["step", "settings", "in", "removed"], [
            [label, _settings(funnel, at), f"{counts['documents in']:,}", f"{counts['documents in'] - counts['documents out']:,}"]
            for at, (label, counts) in enumerate(funnel.steps())
        ]),
        "## What to know", "", *(f"- {note}" for note in _notes(funnel)), "",
    ]  # fmt: skip
    return "\n".join(parts)


def _plain(text: str) -> str:
    return neutralise(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _settings(funnel: Funnel, at: int) -> str:
    """The fields of a step that differ from its defaults."""
    if not at:
        return ""
    step = funnel.recipe.step[at - 1]
    chosen = plain(step)
    defaults = {name: getattr(type(step), name, None) for name in chosen}
    changed = [
        f"{name} = {_named(name, chosen[name])!r}"
        for name in chosen
        if chosen[name] != _defaulted(defaults[name]) and name != "index_path"  # a file of the run's own
    ]
    return _plain(", ".join(changed)[:200]) or "defaults"


def _named(field: str, value: Any) -> Any:
    """A value as the card shows it: of paths, which are this machine's, the last part."""
    if not field.endswith(("path", "paths")):
        return value
    return [Path(path).name for path in value] if isinstance(value, list) else Path(value).name


def _defaulted(value: object) -> object:
    return False if value is None else list(value) if isinstance(value, tuple) else value


def _notes(funnel: Funnel) -> list[str]:
    names = {step.name for step in funnel.recipe.step}
    licences = {source.name for source in funnel.recipe.source}
    return [
        f"The licences of the sources ({', '.join(sorted(map(_plain, licences)))}) hold for their texts; this card does not grant any.",
        "Personal data: e-mail, phone and card numbers, addresses and keys are masked where they are written as such."
        if names & set(MASKS) else "Personal data was not masked: no step `pii` is in the recipe.",
        "Offensive text: filtered by the steps named above; no filter finds all of it."
        if names & set(SCORERS) else "Offensive text was not filtered: the recipe has neither `words` nor `classifier`.",
        "Benchmarks: texts that share n-grams with the named test sets were removed or cut."
        if "decontaminate" in names else "Benchmarks: the text was not compared with any test set.",
        "Duplicates: near copies were looked for in all of the corpus."
        if "fuzzy" in names else "Duplicates: near copies were not looked for.",
        "Removed documents lie in `removed/`, each with its reason; `report.html` shows samples; `manifest.json` has the hashes of all files.",
    ]  # fmt: skip
