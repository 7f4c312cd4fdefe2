"""SentencePiece's BPE, the vocabulary of LLaMA-1, LLaMA-2, TinyLlama and Mistral: characters, not bytes, are merged.

A text is spelled with U+2581 for spaces. Two neighbours merge when together they are a token: the highest score
first (GGUF), or the lowest place in a list of pairs (tokenizer.json); of equals the leftmost. A character that is no
token becomes its bytes, <0x00> to <0xFF>. Control tokens and bytes are never made by a merge, whatever a text says.

Both descriptions are the same algorithm, which the exports use: whether and from which pair a token is made can be
seen from its own text alone, because within the characters that become a token everything merges as it would if they
were the whole text. Texts are cut where no token has the two characters side by side, and long pieces are merged block
by block (`seams.py`). Source: google/sentencepiece, src/bpe_model.cc; llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import heappop, heappush
from itertools import chain, pairwise
from typing import Any, Literal

from kiloq.core.errors import FormatError
from kiloq.tokenize.seams import join
from kiloq.tokenize.vocabulary import AnyVocabulary

SPACE = "\u2581"
BYTE_NAMES = tuple(f"<0x{value:02X}>" for value in range(256))

WORD_CHARS = 64  # ours: longer pieces are cut more finely, and not cached
BLOCK_CHARS = 256  # ours: what is longer still is merged block by block
CACHED_WORDS = 1 << 14  # ours: at most 40 MB
WINDOW_CHARS = 4 * BLOCK_CHARS  # ours: the longest windows over seams that are cached; runs repeat the same ones
CACHED_BLOCKS = 256  # ours: at most 20 MB

Pair = tuple[str, str]


@dataclass(frozen=True)
class Spaces:
    """Where U+2581 is put before a text, and when.

    always: before every stretch of text between control tokens (llama.cpp; the normaliser Prepend). missing: only
    where there is no space. first: the same, and only at the beginning of a text. never: nowhere.
    late: after added tokens were looked for (the pre-tokeniser Metaspace), not before (normalisers).
    split: no token has U+2581 but at its beginning, even where the vocabulary lists such tokens.
    """

    prefix: Literal["always", "missing", "first", "never"] = "always"
    late: bool = False
    split: bool = False

    def spelled(self, text: str, first: bool) -> str:
        """`text` with its spaces written as tokens have them."""
        text = text.replace(" ", SPACE)
        missing = not text.startswith(SPACE) and (first or self.prefix == "missing") and self.prefix != "never"
        return SPACE + text if text and (self.prefix == "always" or missing) else text


def _by_pair(order: Mapping[Any, float]) -> Callable[[str, str], float | None]:
    return lambda left, right: order.get((left, right))


def _by_token(order: Mapping[Any, float]) -> Callable[[str, str], float | None]:
    return lambda left, right: order.get(left + right)


class PieceBPE:
    """Spelled text without control tokens -> ids of tokens."""

    def __init__(
        self,
        ids: Mapping[str, int],
        byte_ids: Sequence[int],
        order: Mapping[Any, float],
        split: bool = False,
    ) -> None:
        """ids: of the tokens that text can become; order: by token or by pair, what merges first has the least."""
        self._ids = ids
        self._byte_ids = byte_ids
        self._order = order
        self._split = split
        self._order_of = _by_pair(order) if isinstance(next(iter(order), None), tuple) else _by_token(order)
        self.word_ids = lru_cache(CACHED_WORDS)(self._ids_of_word)
        self.block = lru_cache(CACHED_BLOCKS)(lambda text: tuple(self.merged(text)[0]))

    def encode(self, text: str) -> list[int]:
        """Ids of the tokens of `text` (well-formed Unicode, spelled)."""
        ids: list[int] = []
        for piece in self._word_start.split(text):
            if len(piece) <= WORD_CHARS:
                ids += self.word_ids(piece)
            else:
                for part in self._parts(piece):
                    ids += self.word_ids(part) if len(part) <= WORD_CHARS else self._ids_of(self._in_blocks(part))
        return ids

    @cached_property
    def _made(self) -> list[str]:
        """What merges can make."""
        return ["".join(key) for key in self._order]

    @cached_property
    def _word_start(self) -> re.Pattern[str]:
        """The places before U+2581 over which no merge goes."""
        if self._split:
            return re.compile(f"(?={SPACE})")
        before = {token[at - 1] for token in self._made for at in range(1, len(token)) if token[at] == SPACE}
        return re.compile(f"(?<![{re.escape(''.join(sorted(before | {SPACE})))}])(?={SPACE})")

    @cached_property
    def _side_by_side(self) -> set[str]:
        """All two characters that stand side by side in a token: merges go over no others."""
        return {token[at : at + 2] for token in self._made for at in range(len(token) - 1)}

    def _parts(self, piece: str) -> Iterator[str]:
        start, crossed = 0, self._side_by_side
        for at, (left, right) in enumerate(pairwise(piece), start=1):
            if left + right not in crossed:
                yield piece[start:at]
                start = at
        yield piece[start:]

    def _in_blocks(self, text: str) -> list[str]:
        parts = list(self.block(text[:BLOCK_CHARS]))
        for at in range(BLOCK_CHARS, len(text), BLOCK_CHARS):
            join(parts, list(self.block(text[at : at + BLOCK_CHARS])), self._again)
        return parts

    def _again(self, parts: list[str], whole: bool) -> Sequence[str]:
        text = "".join(parts)
        return self.block(text) if len(text) <= WINDOW_CHARS else self.merged(text)[0]

    def _ids_of_word(self, word: str) -> tuple[int, ...]:
        return tuple(self._ids_of(self.merged(word)[0]))

    def _ids_of(self, parts: Sequence[str]) -> list[int]:
        try:
            return [self._ids[part] for part in parts]
        except KeyError:  # a character without a token
            known, byte_ids = self._ids, self._byte_ids
            return list(
                chain.from_iterable(
                    [known[part]] if part in known else [byte_ids[byte] for byte in part.encode()] for part in parts
                )
            )

    def merged(self, text: str) -> tuple[list[str], Pair | None]:
        """The parts of `text` when nothing merges any more, and the pair that merged last."""
        parts, end = list(text), len(text)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))
        queue: list[tuple[float, int, int]] = []  # what merges first; position of the left part; length of both

        def offer(left: int, right: int) -> None:
            if left >= 0 and right < end:
                order = self._order_of(parts[left], parts[right])
                if order is not None:
                    heappush(queue, (order, left, len(parts[left]) + len(parts[right])))

        for at in range(1, end):
            offer(at - 1, at)
        last: Pair | None = None
        while queue:
            _, left, length = heappop(queue)
            right = after[left]
            if not parts[left] or right == end or len(parts[left]) + len(parts[right]) != length:
                continue  # one of both has merged with another since
            last = parts[left], parts[right]
            parts[left], parts[right] = last[0] + last[1], ""
            after[left] = after[right]
            if after[left] < end:
                before[after[left]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [part for part in parts if part], last


@dataclass(frozen=True)
class PieceVocabulary(AnyVocabulary):
    """A SentencePiece vocabulary; `order` is by token (GGUF's scores) or by pair (tokenizer.json's merges)."""

    ids: Mapping[str, int]  # of the tokens that text can become, spelled; control tokens and bytes are not among them
    byte_ids: tuple[int, ...]  # 256
    order: Mapping[Any, float]  # the least merges first
    spaces: Spaces
    unk_id: int | None = None

    @property
    def pre(self) -> str:
        return "default"

    @property
    def puts_space(self) -> bool:
        return self.spaces.prefix != "never"

    @property
    def whole_turns(self) -> bool:
        return True

    @property
    def by_pair(self) -> bool:
        """Whether `order` has pairs of tokens for keys."""
        return isinstance(next(iter(self.order), None), tuple)

    def own_tokens(self) -> dict[int, bytes]:
        tokens = {token_id: text.replace(SPACE, " ").encode("utf-8", "replace") for text, token_id in self.ids.items()}
        return tokens | {token_id: bytes([value]) for value, token_id in enumerate(self.byte_ids)}

    def spelled(self, text: str) -> str:
        return text if self.spaces.late else self.spaces.spelled(text, first=False)

    @cached_property
    def bpe(self) -> PieceBPE:
        """The algorithm over this vocabulary."""
        return PieceBPE(self.ids, self.byte_ids, self.order, self.spaces.split)

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        return self.bpe.encode(self.spaces.spelled(text, first) if self.spaces.late else text)

    def extended(self, tokens: Mapping[bytes, int]) -> PieceVocabulary:
        raise FormatError("a SentencePiece vocabulary cannot be extended: only byte-level BPE (qwen.tiktoken) can")

    @cached_property
    def pair_of(self) -> dict[str, Pair]:
        """The pair that makes each token, for the tokens of several characters that a text can become."""
        pairs = {}
        for token in self.ids:
            if len(token) > 1 and not (self.spaces.split and SPACE in token[1:]):
                parts, last = self.bpe.merged(token)
                if last is not None and parts == [token]:
                    pairs[token] = last
        return pairs

    @cached_property
    def merges(self) -> list[Pair]:
        """The list of pairs, first merge first. Tokens of equal score merge one kind after the other in it."""
        if self.by_pair:
            return sorted(self.order, key=self.order.__getitem__)
        known = [pair for pair in self.pair_of.values() if pair[0] in self.ids and pair[1] in self.ids]
        return sorted(known, key=lambda pair: self.order[pair[0] + pair[1]])

    @cached_property
    def scores(self) -> dict[str, float]:
        """Scores under which the tokens in it merge as they do here, the greatest first."""
        if self.by_pair:
            return {token: -self.order[pair] for token, pair in self.pair_of.items()}
        return {token: -order for token, order in self.order.items()}
