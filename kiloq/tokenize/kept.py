"""Vocabularies as they were after reading, kept in the cache: the second start of a model skips the work of the first.

Turning a merge list into ranks proves that both merge alike, which takes half a second for 50,000 merges; the result
is a megabyte. It is kept under a hash of what it was made from (names, sizes and dates of the files, kiloq's version),
as JSON with its own sha256; whatever does not fit is read from the source again. Nothing here is needed: the folder
may be deleted at any time, and a disk that cannot be written to is no error.
"""

from __future__ import annotations

import base64
import hashlib
import json
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import kiloq
from kiloq.core.errors import KiloqError
from kiloq.core.files import atomic_file
from kiloq.core.paths import cache_dir
from kiloq.tokenize import patterns
from kiloq.tokenize.vocabulary import AddedToken, AnyVocabulary, Vocabulary

FORMAT = 1
MOST_KEPT = 16
SIMPLE = ("nfc", "bos_id", "eos_id", "pad_id", "add_bos", "add_eos", "chat_template", "max_length", "whole_pieces")


def kept(sources: Iterable[Path], read: Callable[[], AnyVocabulary]) -> AnyVocabulary:
    """What `read` gives, from the cache where it was read from the same `sources` before."""
    try:
        place = cache_dir() / "vocabularies" / f"{_key(sources)}.json"
    except OSError:
        return read()  # which says what is the matter with the file
    with suppress(OSError, ValueError, KeyError, TypeError, KiloqError):
        return _load(place)
    found = read()
    if isinstance(found, Vocabulary):
        with suppress(OSError, KiloqError):
            _save(found, place)
    return found


def _key(sources: Iterable[Path]) -> str:
    facts: list[Any] = [FORMAT, kiloq.__version__]
    for path in sources:
        status = path.stat()
        facts.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _save(found: Vocabulary, place: Path) -> None:
    tokens = list(found.ranks)
    record = {name: getattr(found, name) for name in SIMPLE} | {
        "pattern": found.pattern.name,
        "bytes": _text(b"".join(tokens)),
        "lengths": _text(array("I", map(len, tokens)).tobytes()),
        "ranks": _text(array("i", found.ranks.values()).tobytes()),
        "ids": None if found.ids is None else _text(array("i", found.ids).tobytes()),
        "added": [asdict(token) for token in found.added],
        "unreachable": {str(token_id): _text(token) for token_id, token in found.unreachable.items()},
    }
    body = json.dumps(record)
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(place) as file:
        file.write(f"{_digest(body)}\n{body}".encode())
    for old in sorted(place.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-MOST_KEPT]:
        old.unlink(missing_ok=True)


def _load(place: Path) -> Vocabulary:
    digest, _, body = place.read_text(encoding="utf-8").partition("\n")
    if digest != _digest(body):
        raise ValueError("the file is damaged")
    record = json.loads(body)
    joined = base64.b64decode(record["bytes"])
    ends = accumulate(_numbers("I", record["lengths"]), initial=0)
    tokens = [joined[start:end] for start, end in pairwise(ends)]
    return Vocabulary(
        dict(zip(tokens, _numbers("i", record["ranks"]), strict=True)),
        patterns.from_gguf(record["pattern"], place),
        None if record["ids"] is None else tuple(_numbers("i", record["ids"])),
        added=tuple(AddedToken(**token) for token in record["added"]),
        unreachable={int(token_id): base64.b64decode(text) for token_id, text in record["unreachable"].items()},
        **{name: record[name] for name in SIMPLE},
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _numbers(code: str, text: str) -> array[int]:
    return array(code, base64.b64decode(text))


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
