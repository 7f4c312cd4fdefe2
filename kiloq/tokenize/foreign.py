"""Byte-level BPE vocabularies of other makers: tokenizer.json, vocab.json with merges.txt, and GGUF metadata.

SentencePiece's kind, which the first and the last of these can also hold, is read by `foreign_pieces.py`. All three spell tokens in GPT-2's printable alphabet (the 188 bytes that print in Latin-1 stand for themselves, the
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
from kiloq.tokenize import fields, foreign_pieces, patterns
from kiloq.tokenize.patterns import SplitPattern
from kiloq.tokenize.vocabulary import BYTES, AddedToken, AnyVocabulary, Vocabulary, ranks_from_merges

MAX_FILE_BYTES = 64 << 20  # ours; a merges.txt has 2 MB

_PRINTING = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted(set(range(256)) - set(_PRINTING))
_CHARACTER_OF_BYTE = {**{value: value for value in _PRINTING}, **{value: 256 + at for at, value in enumerate(_OTHERS)}}
# The other 68 bytes must not pass as the characters of their numbers: those become one that Latin-1 does not have.
_BYTE_OF_CHARACTER = dict.fromkeys(_OTHERS, 0xFFFD) | {char: value for value, char in _CHARACTER_OF_BYTE.items()}

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # GGUF token types; 2, 5 and 6 are tokens that no text becomes
GGUF_ROLES = {"bos_id": "bos", "eos_id": "eos", "pad_id": "padding"}


def to_printable(token: bytes) -> str:
    """A token in GPT-2's printable alphabet."""
    return token.decode("latin-1").translate(_CHARACTER_OF_BYTE)


def from_printable(text: str) -> bytes | None:
    """The inverse of `to_printable`; None for a text with a character outside the alphabet."""
    try:
        return text.translate(_BYTE_OF_CHARACTER).encode("latin-1")
    except UnicodeEncodeError:
        return None


def read_tokenizer_json(path: Path) -> AnyVocabulary:
    """A Hugging Face tokenizer.json of a BPE model."""
    document = load_object(path)
    model = fields.table(document.get("model"), "model", path)
    if model.get("type", "BPE") != "BPE":
        raise FormatError(f"{path}: is a tokenizer of the kind {shown(model.get('type'))}: only BPE is read")
    if model.get("byte_fallback"):
        return _with_ends(foreign_pieces.from_json(document, path), document.get("post_processor"))
    for setting in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise FormatError(
                f"{path}: sets {setting} = {shown(model[setting])}, which byte-level BPE models do not use"
            )
    added = [
        fields.added_token(entry, path) for entry in fields.rows(document.get("added_tokens", []), "added_tokens", path)
    ]
    found = _build(
        fields.token_ids(model.get("vocab"), path),
        [fields.pair(entry, path) for entry in fields.rows(model.get("merges"), "merges", path)],
        added,
        patterns.from_json(document.get("pre_tokenizer"), path),
        path,
        whole_pieces=bool(model.get("ignore_merges", False)),
    )
    found = replace(found, nfc=_is_nfc(document.get("normalizer"), path))
    return _with_ends(found, document.get("post_processor"))


def read_merges_txt(vocab: Path, merges: Path) -> Vocabulary:
    """GPT-2's pair of files. Control tokens are those of the vocabulary that no merge makes and that look like it."""
    ids = fields.token_ids(load_object(vocab), vocab)
    try:
        lines = read_bounded(merges, MAX_FILE_BYTES).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{merges}: is not UTF-8 at byte {error.start:,}") from None
    pairs = [
        fields.pair(line.rstrip("\r"), merges) for line in lines if line.strip() and not line.startswith("#version")
    ]
    made = {left + right for left, right in pairs}
    added = [
        AddedToken(t, token_id)
        for t, token_id in ids.items()
        if len(t) > 2 and t[0] == "<" and t[-1] == ">" and t not in made
    ]
    qwen2 = any(token.text == "<|im_start|>" for token in added) or len(ids) == 151_643
    return replace(_build(ids, pairs, added, patterns.QWEN if qwen2 else patterns.GPT2, vocab), nfc=qwen2)


def _with_ends(found: AnyVocabulary, post_processor: Any) -> AnyVocabulary:
    """`found` with the control tokens that the post-processor puts before and after a text."""
    steps = post_processor.get("processors", [post_processor]) if isinstance(post_processor, dict) else []
    steps = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    single = next((step.get("single") for step in steps if step.get("type") == "TemplateProcessing"), None)
    if not isinstance(single, list) or len(single) < 2:
        return found
    first, last = (_special_id(found, part) for part in (single[0], single[-1]))
    if first is not None:
        found = replace(found, bos_id=first, add_bos=True)
    return found if last is None else replace(found, eos_id=last, add_eos=True)


def _special_id(found: AnyVocabulary, part: Any) -> int | None:
    special = part.get("SpecialToken") if isinstance(part, dict) else None
    name = special.get("id") if isinstance(special, dict) else None
    return found.special.get(name) if isinstance(name, str) else None


def read_gguf(path: Path) -> AnyVocabulary:
    """The vocabulary in a GGUF file's metadata."""
    metadata = GGUFFile(path).metadata
    kind = fields.entry(metadata, "ggml.model", str, path)
    if kind not in ("gpt2", "llama"):
        raise FormatError(
            f"{path}: has a tokenizer of the kind {shown(kind)}: only byte-level BPE (gpt2) and SentencePiece BPE "
            "(llama) are read; use the model's original folder"
        )
    found = _from_gguf(metadata, path) if kind == "gpt2" else foreign_pieces.from_gguf(metadata, path)
    roles = {role: fields.role(metadata, name, found.size, path) for role, name in GGUF_ROLES.items()}
    flags = {flag: fields.entry(metadata, f"ggml.{flag}_token", bool, path) for flag in ("add_bos", "add_eos")}
    said = {name: value for name, value in (roles | flags).items() if value is not None}
    template = fields.checked_template(fields.entry(metadata, "chat_template", str, path), path)
    return replace(found, chat_template=template, **said)


def _from_gguf(metadata: Mapping[str, Any], path: Path) -> Vocabulary:
    """Byte-level BPE of GGUF metadata, without roles."""
    # Files older than this entry do not say: then the architecture does, where there is one of Qwen's.
    unsaid = "qwen2" if str(metadata.get("general.architecture")).startswith("qwen") else "default"
    pattern = patterns.from_gguf(fields.entry(metadata, "ggml.pre", str, path) or unsaid, path)
    tokens, types = fields.tokens_and_types(metadata, path)
    merges = fields.strings(fields.entry(metadata, "ggml.merges", list, path), "merges", path)
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
    found = _build(ids, [fields.pair(merge, path) for merge in merges], added, pattern, path, whole_pieces=llama3)
    return replace(
        found,
        unreachable={**rest, **found.unreachable},
        nfc=pattern is patterns.QWEN,  # GGUF does not say it and llama.cpp does not do it, but the model was trained so
        add_bos=llama3,
    )


def apply_config(found: AnyVocabulary, config: Mapping[str, Any], path: Path) -> AnyVocabulary:
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
        add_eos=config.get("add_eos_token", found.add_eos) is True,
        chat_template=fields.checked_template(template, path) or found.chat_template,
        max_length=length if isinstance(length, int) and 0 < length < 1 << 40 else None,  # 1e30 means "no limit"
    )


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
    return Vocabulary(ranks, pattern, ids_of_ranks, whole_pieces, added=added, unreachable=unreachable)


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
