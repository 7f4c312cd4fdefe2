"""Documents that hold items of test sets are dropped, or the items are cut out of them; what was found is named.

Without this a model's score tells what it has read, not what it can do. The index of the items is built once, by
`prepared`, and the step then asks it (kiloq.prepare.models.overlap says what counts as an item). Two modes: "drop"
removes the document; "cut" is GPT-3's: what was found goes with `margin` characters on each side, pieces shorter than
`least_piece` go too, and a document cut in more than `most_cuts` places is dropped. The column `contaminated` lists
every item found, also of documents that are dropped, so that `contamination` can say of a finished run which items of
each set were in the text. Source: Brown et al. 2020, appendix C.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from kiloq.core.errors import UsageError
from kiloq.core.files import shown
from kiloq.prepare.documents import SCHEMA, Result, texts_of, with_column, with_texts
from kiloq.prepare.models.items import read_items
from kiloq.prepare.models.overlap import MAX_ITEMS, MAX_WORDS, Hits, Index, build_index, load_index
from kiloq.prepare.settings import check_choice, check_counts

MODES = ("drop", "cut")
COLUMN = "contaminated"  # a JSON list of [set, id]; null where nothing was found


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """Drops or cuts what holds items of test sets. Adds `contaminated`. Counts documents by set: "hits of gsm8k"."""

    name: ClassVar[str] = "decontaminate"

    paths: tuple[str, ...] = ()  # the test sets: files, or folders of them
    fields: tuple[str, ...] = ()  # of a row, the only ones to look for; empty: every text of it
    skip_fields: tuple[str, ...] = ()  # of a row, those that are not looked for
    words: int = 13  # of a gram; GPT-3
    least_words: int = 8  # of a short text that is one gram; GPT-3
    most_items: int = 10  # that may share a gram; one of more does not count. GPT-3's number, another use of it
    mode: str = "drop"  # or "cut"
    margin: int = 200  # characters cut on each side; GPT-3
    least_piece: int = 200  # characters of what is left between cuts; GPT-3
    most_cuts: int = 10  # more: dropped. GPT-3
    index_path: str | None = None  # made by `prepared`; given, `paths` are not read

    def __post_init__(self) -> None:
        check_choice(self, "mode", MODES)
        check_counts(self, "margin", "least_piece", "most_cuts")
        check_counts(self, "least_words", "most_items", least=1)
        if not self.least_words <= self.words <= MAX_WORDS:
            raise UsageError(
                f"decontaminate: words is {self.words}: give least_words, {self.least_words}, to {MAX_WORDS}"
            )
        if self.most_items > MAX_ITEMS:
            raise UsageError(f"decontaminate: most_items is {self.most_items}: give at most {MAX_ITEMS}")
        if not self.paths and self.index_path is None:
            raise UsageError("decontaminate: there are no test sets: give paths = a list of files or folders")

    def prepared(self, folder: Path) -> Decontaminate:
        """This step with its index, built in `folder` under a name that depends on the settings, or found there."""
        if self.index_path is not None:
            return self
        said = json.dumps([self.paths, self.fields, self.skip_fields, self.words, self.least_words, self.most_items])
        path = folder / f"items-{sha256(said.encode('utf-8', 'replace')).hexdigest()[:16]}.safetensors"
        if not path.exists():
            items = read_items(self.paths, self.fields, self.skip_fields)
            build_index(items, path, self.words, self.least_words, self.most_items)
        return replace(self, index_path=str(path))

    def apply(self, batch: Any) -> Result:
        if not batch.num_rows:  # to see which columns there will be, no index is needed
            return Result(with_column(batch, COLUMN, [], SCHEMA.field("meta").type), [])
        index = self._index()
        texts: list[str] = []
        reasons: list[str | None] = []
        names: list[str | None] = []
        edits: Counter[str] = Counter()
        found = texts_of(batch)
        for text, hits in zip(found, index.hits(found), strict=True):
            items = [index.name(item) for item in index.items_of(hits.slots)]
            edits.update(f"hits of {name}" for name in sorted({name for name, _ in items}))
            names.append(json.dumps(items, ensure_ascii=False) if items else None)
            left, reason, cuts = self._treated(text, hits, index) if items else (text, None, 0)
            edits.update({"cuts around test items": cuts} if cuts else {})
            texts.append(left)
            reasons.append(reason)
        batch = with_texts(batch, texts) if self.mode == "cut" else batch
        return Result(with_column(batch, COLUMN, names, SCHEMA.field("meta").type), reasons, edits)

    def _index(self) -> Index:
        if self.index_path is None:
            raise UsageError("decontaminate: its index is not built: call prepared(folder), or give index_path")
        return load_index(self.index_path)

    def _treated(self, text: str, hits: Hits, index: Index) -> tuple[str, str | None, int]:
        """A document with hits: what stays of its text, the reason if it is to go, and the number of cuts."""
        if self.mode == "drop":
            name, one = index.name(index.items_of(hits.slots[:1])[0])
            said = " ".join(text[int(hits.starts[0]) : int(hits.ends[0])].split())
            return text, f"decontaminate: has the item {shown(one, 60)} of {name}: {shown(said, 160)}", 0
        pieces, cuts = self._cut(text, hits)
        if cuts > self.most_cuts:
            return text, f"decontaminate: places with test items: {cuts}, at most {self.most_cuts} may be", 0
        if not pieces:
            return text, f"decontaminate: no piece of {self.least_piece} characters is left beside test items", 0
        return "\n\n".join(pieces), None, cuts

    def _cut(self, text: str, hits: Hits) -> tuple[list[str], int]:
        """The pieces between cuts, and how many cuts there are; cuts that touch are one."""
        pieces: list[str] = []
        cuts = after = 0
        for start, end in zip(hits.starts.tolist(), hits.ends.tolist(), strict=True):
            if cuts == 0 or start - self.margin > after:
                pieces.append(text[after : max(after, start - self.margin)])
                cuts += 1
            after = max(after, end + self.margin)
        pieces.append(text[after:])
        return [piece.strip() for piece in pieces if len(piece) >= max(1, self.least_piece)], cuts


def contamination(named: Iterable[str | None], index_path: str | Path) -> dict[str, Any]:
    """Of the `contaminated` column of a whole run, by set: `items`, `searchable` (that have a gram), `hit`, and their `ids`."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for text in named:
        for name, one in json.loads(text or "[]"):
            found[name].add(one)
    return {
        name: {"items": every, "searchable": able, "hit": len(found[name]), "ids": sorted(found[name])}
        for name, (every, able) in load_index(str(index_path)).sizes().items()
    }
