"""How often each piece of Qwen's pre-tokeniser occurs in texts: what BPE training learns from.

Text goes to NFC first, as it does before encoding. ASCII is cut with the expression as Python's own `re` has it, twice
as fast. Of other text, a space after anything but white space always begins a piece, so it is cut there with a search
that is quick, and only the different words, far fewer in most languages, are cut with the expression. Pieces longer
than MAX_PIECE_BYTES (packed data, rulers of dashes) are not learnt from and counted. Processes share the work; what
they find is added up, so their number does not change the result.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache

import regex  # type: ignore[import-untyped]

from kiloq.core.errors import UsageError
from kiloq.core.files import shown
from kiloq.tokenize.files import MAX_TOKEN_BYTES
from kiloq.tokenize.normalize import nfc, well_formed
from kiloq.tokenize.patterns import QWEN
from kiloq.tokenize.pool import workers
from kiloq.tokenize.texts import Text

MAX_PIECE_BYTES = MAX_TOKEN_BYTES  # a token is never longer than its piece, and readers take no longer token
MAX_PIECES = 50_000_000  # ours: different pieces held in memory, about 150 bytes each while they are counted
BATCH_CHARS = 2 << 20  # ours: enough for words to repeat; a process gets this much at a time

_BEFORE_WORD = re.compile(r" (?<=\S )")


@dataclass
class Counts:
    """Pieces with their weighted counts, and what was read to get them."""

    pieces: dict[bytes, int] = field(default_factory=dict)
    documents: Counter[str] = field(default_factory=Counter)  # by group
    bytes: Counter[str] = field(default_factory=Counter)  # by group, in UTF-8 after NFC
    long_pieces: int = 0  # occurrences left out


@dataclass(frozen=True)
class Batch:
    """The pieces of texts of one group."""

    group: str
    pieces: Counter[str]
    documents: int
    bytes: int
    long_pieces: int


def count_pieces(texts: Iterable[Text], weights: Mapping[str, int], default: int, processes: int) -> Counts:
    """Pieces of all texts, the occurrences in a group multiplied by its weight; `default` for groups without one.

    Raises UsageError where nothing was read, a weighted group does not occur, or there are too many pieces.
    """
    found, pieces = Counts(), dict[str, int]()
    for batch in _counted(_batches(texts), processes):
        found.documents[batch.group] += batch.documents
        found.bytes[batch.group] += batch.bytes
        found.long_pieces += batch.long_pieces
        if times := weights.get(batch.group, default):
            for piece, count in batch.pieces.items():
                pieces[piece] = pieces.get(piece, 0) + count * times
        if len(pieces) > MAX_PIECES:
            raise UsageError(
                f"the text has more than {MAX_PIECES:,} different pieces, which is what training holds in memory: "
                "give less text"
            )
    groups = ", ".join(sorted(found.documents)[:20])
    if unknown := sorted(weights.keys() - found.documents.keys()):
        raise UsageError(f"--weights names {shown(unknown[0], 40)}, and the texts are of: {groups or 'none'}")
    if not pieces:
        raise UsageError(f"there is nothing to learn from in {found.documents.total():,} documents: give text")
    while pieces:  # one by one, so that no piece is held twice
        piece, count = pieces.popitem()
        found.pieces[piece.encode()] = count
    return found


def _batches(texts: Iterable[Text]) -> Iterator[tuple[str, list[str], int]]:
    """Texts of one group together, about BATCH_CHARS at a time; at the end what is left of each group."""
    held: dict[str, list[str]] = {}
    sizes: Counter[str] = Counter()  # characters, and one for each document
    begun: Counter[str] = Counter()  # documents
    waiting = 0
    for text in texts:
        held.setdefault(text.group, []).append(text.text)
        sizes[text.group] += len(text.text) + 1
        begun[text.group] += not text.continues
        waiting += len(text.text) + 1
        if sizes[text.group] >= BATCH_CHARS:
            yield text.group, held.pop(text.group), begun.pop(text.group, 0)
            waiting -= sizes.pop(text.group)
        elif waiting >= 8 * BATCH_CHARS:  # many groups: none waits for ever
            yield from ((group, texts, begun[group]) for group, texts in held.items())
            held, sizes, begun, waiting = {}, Counter(), Counter(), 0
    yield from ((group, texts, begun[group]) for group, texts in held.items())


def _counted(batches: Iterable[tuple[str, list[str], int]], processes: int) -> Iterator[Batch]:
    """`count_batch` of each, in this process or in others, where twice as many wait as can work."""
    if processes <= 1:
        yield from (count_batch(*batch) for batch in batches)
        return
    waiting: deque[Future[Batch]] = deque()
    with workers(processes, "counts pieces") as pool:
        for batch in batches:
            waiting.append(pool.submit(count_batch, *batch))
            if len(waiting) >= 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@cache
def _piece() -> regex.Pattern[str]:
    return regex.compile(QWEN.expression, regex.VERSION0)


@cache
def _ascii_piece() -> re.Pattern[str]:
    """The same for ASCII, where letters and digits are ranges."""
    inside = QWEN.expression.replace(r"\p{L}\p{N}", "A-Za-z0-9")  # letters with digits stand in brackets alone
    return re.compile(inside.replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]"), re.ASCII)


def count_batch(group: str, texts: list[str], documents: int) -> Batch:
    """The pieces of `texts`, in which so many documents begin."""
    words: Counter[str] = Counter()
    pieces: Counter[str] = Counter()
    size = 0
    find, find_ascii = _piece().findall, _ascii_piece().findall
    for text in texts:
        if text.isascii():
            pieces.update(find_ascii(text))
            size += len(text)
            continue
        normal = well_formed(nfc(text))
        size += len(normal.encode())
        first, *others = _BEFORE_WORD.split(normal)
        if first:
            words[first] += 1
        words.update(map(" ".__add__, others))
    for word, count in words.items():
        for piece in find_ascii(word) if word.isascii() else find(word):
            pieces[piece] += count
    long = [p for p in pieces if 4 * len(p) > MAX_PIECE_BYTES and len(p.encode()) > MAX_PIECE_BYTES]
    left_out = sum(pieces.pop(piece) for piece in long)
    return Batch(group, pieces, documents, size, left_out)
