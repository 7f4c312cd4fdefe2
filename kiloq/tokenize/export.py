"""Vocabularies for other programs: tokenizer.json and tokenizer_config.json, and qwen.tiktoken where ranks are ids.

`tokenizers.Tokenizer.from_file`, transformers' AutoTokenizer (without remote code), vLLM and llama.cpp's converter read
these. Merges come from the ranks. Qwen's control tokens are marked as `normalized`, because Qwen-1 looks for them
after NFC; `ignore_merges` says what tiktoken does with a piece that is a token. The chat template is ChatML with the
default system message, in words of our own, unless the vocabulary brought a template along.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiloq.core.files import atomic_file
from kiloq.tokenize.chatml import QWEN_SYSTEM
from kiloq.tokenize.files import EXTRA_FILE, TIKTOKEN_FILE
from kiloq.tokenize.foreign import to_printable
from kiloq.tokenize.sentencepiece import BYTE_NAMES, SPACE, PieceVocabulary, Spaces
from kiloq.tokenize.vocabulary import IM_END, IM_START, QWEN_CONTROL_TOKENS, AnyVocabulary, Vocabulary

CHATML_TEMPLATE = (
    "{%- if not messages or messages[0].role != 'system' -%}"
    f"{{{{- '{IM_START}system\\n{QWEN_SYSTEM}{IM_END}\\n' -}}}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    f"{{{{- '{IM_START}' + message.role + '\\n' + (message.content or '') + '{IM_END}\\n' -}}}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    f"{{{{- '{IM_START}assistant\\n' -}}}}"
    "{%- endif -%}"
)


def save(vocabulary: AnyVocabulary, folder: Path) -> list[Path]:
    """Write the files of `vocabulary` into `folder`, which is made if need be; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "tokenizer.json": _json(tokenizer_json(vocabulary)),
        "tokenizer_config.json": _json(tokenizer_config(vocabulary), indent=2),
    }
    if isinstance(vocabulary, Vocabulary) and _is_qwen(vocabulary):
        first_control = min(vocabulary.special.values())
        contents[TIKTOKEN_FILE] = tiktoken_lines({t: r for t, r in vocabulary.ranks.items() if r < first_control})
        extra = {token: rank for token, rank in vocabulary.ranks.items() if rank > first_control}
        if extra:
            contents[EXTRA_FILE] = tiktoken_lines(extra)
    for name, data in contents.items():
        with atomic_file(folder / name) as file:
            file.write(data)
    return [folder / name for name in contents]


def _is_qwen(vocabulary: Vocabulary) -> bool:
    """Whether qwen.tiktoken, which implies Qwen-1's control tokens, says all that there is to say."""
    return vocabulary.ids is None and tuple(token.text for token in vocabulary.added) == QWEN_CONTROL_TOKENS


def tiktoken_lines(ranks: Mapping[bytes, int]) -> bytes:
    """The .tiktoken format, in the order of `ranks`."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def chat_template(vocabulary: AnyVocabulary) -> str | None:
    """The vocabulary's own template, or ChatML where it has ChatML's control tokens."""
    if vocabulary.chat_template is None and {IM_START, IM_END} <= vocabulary.special.keys():
        return CHATML_TEMPLATE
    return vocabulary.chat_template


def tokenizer_json(vocabulary: AnyVocabulary) -> dict[str, Any]:
    """The document of huggingface/tokenizers."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    added = sorted(vocabulary.added, key=lambda token: token.id)
    parts = _pieces(vocabulary) if isinstance(vocabulary, PieceVocabulary) else _byte_level(vocabulary)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": t.id, "content": t.text, **{flag: getattr(t, flag) for flag in flags}} for t in added],
        **parts,
    }


def _byte_level(vocabulary: AnyVocabulary) -> dict[str, Any]:
    assert isinstance(vocabulary, Vocabulary), "there are two kinds of vocabulary"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"} if vocabulary.nfc else None,
        "pre_tokenizer": vocabulary.pattern.pre_tokenizer(),
        "post_processor": _ends(vocabulary) or byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": vocabulary.whole_pieces,
            "vocab": _vocab(vocabulary),
            "merges": [[to_printable(left), to_printable(right)] for left, right in vocabulary.merges],
        },
    }  # fmt: skip


def _pieces(vocabulary: PieceVocabulary) -> dict[str, Any]:
    """SentencePiece's kind. Every token is in `vocab`, control tokens too, as in the files of LLaMA-2."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
    ]  # fmt: skip
    if vocabulary.puts_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    name_of = {token.id: token.text for token in vocabulary.added}
    names = {token_id: token.decode("utf-8", "replace") for token_id, token in vocabulary.unreachable.items()}
    names |= {token_id: text for text, token_id in vocabulary.ids.items()} | name_of
    names |= dict(zip(vocabulary.byte_ids, BYTE_NAMES, strict=True))
    return {
        **_spaces(vocabulary.spaces),
        "post_processor": _ends(vocabulary),
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": name_of.get(-1 if (u := vocabulary.unk_id) is None else u),
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {name: token_id for token_id, name in sorted(names.items())},
            "merges": [list(pair) for pair in vocabulary.merges],
        },
    }  # fmt: skip


def _spaces(spaces: Spaces) -> dict[str, Any]:
    """Normaliser and pre-tokeniser that spell spaces."""
    if spaces.late:
        scheme = "always" if spaces.prefix == "missing" else spaces.prefix
        step = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": spaces.split}
        return {"normalizer": None, "pre_tokenizer": step}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    steps = [prepend, replace] if spaces.prefix == "always" else [replace]
    return {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}


def _vocab(vocabulary: Vocabulary) -> dict[str, int]:
    """Tokens in the alphabet of byte-level BPE. Added tokens are listed with them unless they follow directly.

    The library numbers added tokens that it does not find here itself: from the number of entries on.
    """
    added = {token.id: token.text for token in vocabulary.added}
    own = {token_id: token for token_id, token in vocabulary.token_of_id.items() if token_id not in added}
    follow = sorted(added) == list(range(len(own), len(own) + len(added)))
    names = {token_id: to_printable(token) for token_id, token in own.items()} | ({} if follow else added)
    return {name: token_id for token_id, name in sorted(names.items())}


def _ends(vocabulary: AnyVocabulary) -> dict[str, Any] | None:
    """The post-processor that puts control tokens before or after a text, where the model wants them."""
    name_of = {token.id: token.text for token in vocabulary.added}
    wanted = [vocabulary.bos_id if vocabulary.add_bos else None, vocabulary.eos_id if vocabulary.add_eos else None]
    names = [None if token_id is None else name_of.get(token_id) for token_id in wanted]
    if names == [None, None]:
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before, after = ([{"SpecialToken": {"id": n, "type_id": type_id}}] if n is not None else [] for n in names)
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [token_id], "tokens": [name]}
            for name, token_id in zip(names, wanted, strict=True)
            if name is not None
        },
    }


def tokenizer_config(vocabulary: AnyVocabulary) -> dict[str, Any]:
    """transformers' settings: roles, template, length."""
    name_of = {token.id: token.text for token in vocabulary.added}
    end = vocabulary.special.get(IM_END, vocabulary.eos_id)  # a chat's turn ends with <|im_end|>
    roles = {"bos": vocabulary.bos_id, "eos": end, "pad": vocabulary.pad_id}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        **{
            f"{role}_token": name_of.get(token_id) if token_id is not None else None for role, token_id in roles.items()
        },
    }
    if vocabulary.max_length is not None:
        config["model_max_length"] = vocabulary.max_length
    if template := chat_template(vocabulary):
        config["chat_template"] = template
    return config


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent).encode() + b"\n"
