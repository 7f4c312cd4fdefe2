"""Byte-level BPE vocabularies of other makers: tokenizer.json, vocab.json with merges.txt, and GGUF metadata.

All three spell tokens in GPT-2's printable alphabet (the 188 bytes that print in Latin-1 stand for themselves, the
other 68 for the characters from U+0100 on) and list merges. Every setting that would change ids is applied or refused
by name; the split patterns are those of `patterns.py`. Sources: huggingface/tokenizers' serialisation, ggml's
docs/gguf.md ("gpt2" is byte-level BPE there), llama.cpp's src/llama-vocab.cpp for its defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kiloq.core.errors import FormatError
from kiloq.core.files import read_bounded, shown
from kiloq.core.gguf import GGUFFile
from kiloq.core.safe_json import load_object
from kiloq.tokenize import patterns
from kiloq.tokenize.patterns import SplitPattern
from kiloq.tokenize.vocabulary import BYTES, MAX_ID, AddedToken, Vocabulary, ranks_from_merges

MAX_FILE_BYTES = 64 << 20  # ours; a merges.txt has 2 MB
MAX_TEMPLATE_CHARS = 64 << 10  # ours; the longest chat templates in use have 20 KB

_PRINTING = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted(set(range(256)) - set(_PRINTING))
_CHARACTER_OF_BYTE = {**{value: value for value in _PRINTING}, **{value: 256 + at for at, value in enumerate(_OTHERS)}}
# The other 68 bytes must not pass as the characters of their numbers: those become one that Latin-1 does not have.
_BYTE_OF_CHARACTER = dict.fromkeys(_OTHERS, 0xFFFD) | {char: value for value, char in _CHARACTER_OF_BYTE.items()}

# GGUF token types (gguf.TokenType). Types 2, 5 and 6 are tokens that no text becomes.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def to_printable(token: bytes) -> str:
    """A token in GPT-2's printable alphabet."""
    return token.decode("latin-1").translate(_CHARACTER_OF_BYTE)


def from_printable(text: str) -> bytes | None:
    """The inverse of `to_printable`; None for a text with a character outside the alphabet."""
    try:
        return text.translate(_BYTE_OF_CHARACTER).encode("latin-1")
    except UnicodeEncodeError:
        return None


def read_tokenizer_json(path: Path) -> Vocabulary:
    """A Hugging Face tokenizer.json of a byte-level BPE model."""
    document = load_object(path)
    model = _table(document.get("model"), "model", path)
    if model.get("type", "BPE") != "BPE":
        raise FormatError(f"{path}: is a tokenizer of the kind {shown(model.get('type'))}: only byte-level BPE is read")
    for setting in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(setting):
            raise FormatError(
                f"{path}: sets {setting} = {shown(model[setting])}, which byte-level BPE models do not use"
            )
    added = [_added_token(entry, path) for entry in _rows(document.get("added_tokens", []), "added_tokens", path)]
    found = _build(
        _ids(model.get("vocab"), path),
        [_pair(entry, path) for entry in _rows(model.get("merges"), "merges", path)],
        added,
        patterns.from_json(document.get("pre_tokenizer"), path),
        path,
        whole_pieces=bool(model.get("ignore_merges", False)),
    )
    return replace(found, nfc=_is_nfc(document.get("normalizer"), path))


def read_merges_txt(vocab: Path, merges: Path) -> Vocabulary:
    """GPT-2's pair of files. Control tokens are those of the vocabulary that no merge makes and that look like it."""
    ids = _ids(load_object(vocab), vocab)
    try:
        lines = read_bounded(merges, MAX_FILE_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{merges}: is not UTF-8 at byte {error.start:,}") from None
    pairs = [_pair(line.rstrip("\r"), merges) for line in lines if line.strip() and not line.startswith("#version")]
    made = {left + right for left, right in pairs}
    added = [
        AddedToken(t, token_id)
        for t, token_id in ids.items()
        if len(t) > 2 and t[0] == "<" and t[-1] == ">" and t not in made
    ]
    qwen2 = any(token.text == "<|im_start|>" for token in added) or len(ids) == 151_643
    return replace(_build(ids, pairs, added, patterns.QWEN if qwen2 else patterns.GPT2, vocab), nfc=qwen2)


def read_gguf(path: Path) -> Vocabulary:
    """The vocabulary in a GGUF file's metadata."""
    metadata = GGUFFile(path).metadata
    model = _entry(metadata, "ggml.model", str, path)
    if model != "gpt2":
        raise FormatError(
            f"{path}: has a tokenizer of the kind {shown(model)}: only byte-level BPE (gpt2) is read; "
            "use the model's original folder"
        )
    # Files older than this entry do not say: then the architecture does, where there is one of Qwen's.
    unsaid = "qwen2" if str(metadata.get("general.architecture")).startswith("qwen") else "default"
    pattern = patterns.from_gguf(_entry(metadata, "ggml.pre", str, path) or unsaid, path)
    tokens = _strings(_entry(metadata, "ggml.tokens", list, path), "tokens", path)
    merges = _strings(_entry(metadata, "ggml.merges", list, path), "merges", path)
    types = _entry(metadata, "ggml.token_type", list, path) or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise FormatError(f"{path}: has {len(tokens):,} tokens but {len(types):,} token types")
    rows = list(zip(tokens, types, range(len(tokens)), strict=True))
    ids = {token: token_id for token, kind, token_id in rows if kind == NORMAL}
    found_first = (CONTROL, USER_DEFINED)
    added = [
        AddedToken(token, token_id, special=kind == CONTROL)
        for token, kind, token_id in rows
        if kind in found_first and token
    ]
    rest = {
        token_id: token.encode("utf-8", "replace")
        for token, kind, token_id in rows
        if kind not in (NORMAL, *found_first)
    }
    llama3 = pattern is patterns.LLAMA3  # llama.cpp ignores merges and adds BOS for this kind
    found = _build(ids, [_pair(merge, path) for merge in merges], added, pattern, path, whole_pieces=llama3)
    add_bos = _entry(metadata, "ggml.add_bos_token", bool, path)
    return replace(
        found,
        unreachable={**rest, **found.unreachable},
        nfc=pattern is patterns.QWEN,  # GGUF does not say it and llama.cpp does not do it, but the model was trained so
        bos_id=_role(metadata, "bos", len(tokens), path),
        eos_id=_role(metadata, "eos", len(tokens), path),
        pad_id=_role(metadata, "padding", len(tokens), path),
        add_bos=llama3 if add_bos is None else add_bos,
        chat_template=checked_template(_entry(metadata, "chat_template", str, path), path),
    )


def apply_config(found: Vocabulary, config: Mapping[str, Any], path: Path) -> Vocabulary:
    """`found` with what a tokenizer_config.json says about roles, template and length; nothing in it is code."""
    known = {token.text: token.id for token in found.added}

    def role(name: str, default: int | None) -> int | None:
        value = config.get(f"{name}_token")
        text = value.get("content") if isinstance(value, dict) else value
        return known.get(text, default) if isinstance(text, str) else default

    length = config.get("model_max_length")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates; the one for chat is called "default"
        named = {row.get("name"): row.get("template") for row in template if isinstance(row, dict)}
        template = named.get("default")
    return replace(
        found,
        bos_id=role("bos", found.bos_id),
        eos_id=role("eos", found.eos_id),
        pad_id=role("pad", found.pad_id),
        add_bos=config.get("add_bos_token", found.add_bos) is True,
        chat_template=checked_template(template, path) or found.chat_template,
        max_length=length if isinstance(length, int) and 0 < length < 1 << 40 else None,  # 1e30 means "no limit"
    )


def checked_template(template: Any, path: Path) -> str | None:
    """A chat template that is a string of sane length, or None."""
    if template is None:
        return None
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE_CHARS:
        raise FormatError(f"{path}: its chat template is not a string of at most {MAX_TEMPLATE_CHARS:,} characters")
    return template


def _build(
    ids: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    added: Iterable[AddedToken],
    pattern: SplitPattern,
    path: Path,
    whole_pieces: bool = False,
) -> Vocabulary:
    """A Vocabulary from printable tokens and merges; ranks are renumbered where ids do not follow the merges."""
    added = tuple(added)
    names = {token.id for token in added}
    spelled = [(from_printable(text), text, token_id) for text, token_id in ids.items() if token_id not in names]
    id_of = {token: token_id for token, _, token_id in spelled if token is not None}
    pairs = _known_pairs(merges, {text: token for token, text, _ in spelled if token}, id_of, path)
    first = sorted(BYTES, key=lambda byte: id_of.get(byte, -1))
    ranks = _ranks_as_listed(pairs, first, id_of) if whole_pieces else ranks_from_merges(pairs, first, path)
    unreachable = {token_id: token or text.encode() for token, text, token_id in spelled if token not in ranks}
    ids_of_ranks: tuple[int, ...] | None = None
    numbers = [id_of.get(token, -1) for token in ranks]
    if all(before < after for before, after in zip([-1, *numbers], numbers, strict=False)):
        ranks = dict(zip(ranks, numbers, strict=True))  # ids rise with ranks: they can be the ranks
    else:
        ranks = {token: rank for rank, token in enumerate(ranks)}
        ids_of_ranks = tuple(numbers)
    return Vocabulary(ranks, pattern, added, ids_of_ranks, unreachable, whole_pieces)


def _known_pairs(
    merges: Iterable[tuple[str, str]], bytes_of: Mapping[str, bytes], id_of: Mapping[bytes, int], path: Path
) -> list[tuple[bytes, bytes]]:
    """The merges in bytes. Both halves and what they make must be tokens."""
    pairs = []
    for at, (left, right) in enumerate(merges, start=1):
        pair = bytes_of.get(left, b""), bytes_of.get(right, b"")
        if not pair[0] or not pair[1] or pair[0] + pair[1] not in id_of:
            raise FormatError(
                f"{path}: merge {at} ({shown(f'{left} {right}')}) does not make a token of the vocabulary"
            )
        pairs.append(pair)
    return pairs


def _ranks_as_listed(
    pairs: Sequence[tuple[bytes, bytes]], first: Sequence[bytes], id_of: Mapping[bytes, int]
) -> dict[bytes, int]:
    """Ranks for a list that was itself made from ranks (LLaMA-3): each token's first place.

    Such a list has every pair that makes a token, so pairs and ranks merge alike. Tokens that no pair makes come last:
    tiktoken takes them where they are a whole piece, which is what `ignore_merges` means.
    """
    order = dict.fromkeys([*first, *(left + right for left, right in pairs)])
    order.update(dict.fromkeys(id_of))
    return {token: rank for rank, token in enumerate(order)}


def _table(value: Any, name: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{path}: its entry {name} is, or holds, something that is not an object")
    return value


def _rows(value: Any, name: str, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{path}: its entry {name} is not a list")
    return value


def _ids(value: Any, path: Path) -> dict[str, int]:
    table = _table(value, "vocab", path)
    if any(type(token_id) is not int or not 0 <= token_id < MAX_ID for token_id in table.values()):
        raise FormatError(f"{path}: has a token whose id is not a number from 0 to {MAX_ID - 1:,}")
    if len(set(table.values())) != len(table):
        raise FormatError(f"{path}: gives two tokens the same id")
    return table


def _pair(entry: Any, path: Path) -> tuple[str, str]:
    halves = entry.split(" ") if type(entry) is str else entry
    if type(halves) is list and len(halves) == 2 and type(halves[0]) is type(halves[1]) is str:
        return halves[0], halves[1]
    raise FormatError(f"{path}: {shown(entry)} is not a merge of two tokens")


def _added_token(entry: Any, path: Path) -> AddedToken:
    row = _table(entry, "added_tokens", path)
    text, token_id = row.get("content"), row.get("id")
    if not isinstance(text, str) or not text or type(token_id) is not int or not 0 <= token_id < MAX_ID:
        raise FormatError(f"{path}: the added token {shown(row)} has no text or no id from 0 to {MAX_ID - 1:,}")
    flags = {name: row.get(name) is True for name in ("special", "normalized", "lstrip", "rstrip", "single_word")}
    return AddedToken(text, token_id, **flags)


def _is_nfc(value: Any, path: Path) -> bool:
    if value is None:
        return False
    steps = value.get("normalizers") if isinstance(value, dict) and value.get("type") == "Sequence" else [value]
    kinds = (
        [step.get("type") if isinstance(step, dict) else step for step in steps] if isinstance(steps, list) else [None]
    )
    if not all(kind == "NFC" for kind in kinds):
        raise FormatError(f"{path}: normalises text with {shown(kinds)}: only NFC, or nothing, is read")
    return bool(kinds)


def _entry(metadata: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    """A metadata entry of the right type, or None where it is absent; vocabularies must be there."""
    value = metadata.get(f"tokenizer.{key}")
    if value is None and key not in ("ggml.tokens", "ggml.merges", "ggml.model"):
        return None
    if not isinstance(value, kind):
        raise FormatError(f"{path}: its metadata entry tokenizer.{key} is missing or not of type {kind.__name__}")
    return value


def _strings(values: list[Any], name: str, path: Path) -> list[str]:
    if not all(isinstance(value, str) for value in values) or len(values) > MAX_ID:
        raise FormatError(f"{path}: its {name} are not a list of at most {MAX_ID:,} strings")
    return values


def _role(metadata: Mapping[str, Any], name: str, size: int, path: Path) -> int | None:
    token_id: int | None = _entry(metadata, f"ggml.{name}_token_id", int, path)
    if token_id is not None and not 0 <= token_id < size:
        raise FormatError(f"{path}: its {name} token is {token_id:,}, but the vocabulary has {size:,} tokens")
    return token_id
