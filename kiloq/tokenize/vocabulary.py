"""What a tokenizer knows, whatever file it came from: merge ranks, split pattern, added tokens and the ids of roles.

`AnyVocabulary` is what all kinds share, `Vocabulary` is byte-level BPE; SentencePiece's kind is in `sentencepiece.py`.
Two descriptions of byte-level BPE meet here. tiktoken's files rank tokens: two neighbours merge when their bytes together are a
token, lowest rank first. Hugging Face and llama.cpp list merges: only listed pairs merge. `ranks_from_merges` turns
the second into the first where they are the same algorithm, and `merges_from_ranks` goes back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from kiloq.core.errors import FormatError
from kiloq.core.files import shown
from kiloq.tokenize.bpe import ByteBPE, bpe_parts
from kiloq.tokenize.patterns import QWEN, SplitPattern

MAX_ID = 1 << 22  # ours: a list with one entry per id is made; the largest vocabularies in use have 2^18
BYTES = tuple(bytes([value]) for value in range(256))

# Qwen-1's 208 control tokens in the order of their ids, which follow the last rank. Source: the table in
# the original's tokenization_note.md.
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
QWEN_CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END, *(f"<|extra_{number}|>" for number in range(205)))

QWEN_MAX_LENGTH = 32_768  # tokens; the longest context that the series advertises (Qwen's README, model table)

# Control tokens that end a turn or a text in the models read here; llama.cpp keeps a similar list.
END_NAMES = (END_OF_TEXT, IM_END, "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in text before BPE. `special` ones are control tokens and found only when asked for."""

    text: str
    id: int
    special: bool = True
    normalized: bool = False  # looked for after normalisation instead of before
    lstrip: bool = False  # takes the white space before it
    rstrip: bool = False  # takes the white space after it
    single_word: bool = False  # not inside a word


@dataclass(frozen=True, kw_only=True)
class AnyVocabulary(ABC):
    """What `Tokenizer` needs of every kind of vocabulary."""

    added: tuple[AddedToken, ...] = ()
    unreachable: Mapping[int, bytes] = field(default_factory=dict)  # id -> bytes of tokens that no text becomes
    nfc: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    add_bos: bool = False  # the model was trained with `bos_id` before a text
    add_eos: bool = False  # ... and with `eos_id` after it
    chat_template: str | None = None
    max_length: int | None = None

    @property
    @abstractmethod
    def pre(self) -> str:
        """llama.cpp's name of the way to cut text into pieces (`tokenizer.ggml.pre`)."""

    @abstractmethod
    def own_tokens(self) -> dict[int, bytes]:
        """Bytes of the ids that text without added tokens can become."""

    @abstractmethod
    def encode(self, text: str, *, first: bool) -> list[int]:
        """Ids of a text without added tokens, as `spelled` gave it; `first`: nothing stands before it."""

    @abstractmethod
    def extended(self, tokens: Mapping[bytes, int]) -> AnyVocabulary:
        """With `tokens` of a vocabulary expansion. Raises FormatError where that is not possible."""

    def spelled(self, text: str) -> str:
        """Normalised text as the tokens spell it; added tokens that are `normalized` are looked for in this."""
        return text

    @property
    def puts_space(self) -> bool:
        """Whether `encode` puts a space before a text, so that decoding takes one away."""
        return False

    @property
    def whole_turns(self) -> bool:
        """Whether a turn's role and text are encoded as one text in ChatML; Qwen encodes them apart."""
        return False

    @cached_property
    def special(self) -> dict[str, int]:
        """Names and ids of the control tokens."""
        return {token.text: token.id for token in self.added if token.special}

    @cached_property
    def token_of_id(self) -> dict[int, bytes]:
        """Bytes of every id in use; added tokens as their name in UTF-8."""
        added = {token.id: token.text.encode("utf-8", "replace") for token in self.added}
        return {**self.unreachable, **self.own_tokens(), **added}

    @cached_property
    def tokens(self) -> list[bytes]:
        """Bytes by id; empty where an id is not in use."""
        by_id = self.token_of_id
        return [by_id.get(token_id, b"") for token_id in range(self.size)]

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.token_of_id) + 1

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant's turn or a text: `eos_id` and every control token known to do so."""
        named = (self.special[name] for name in END_NAMES if name in self.special)
        own = () if self.eos_id is None else (self.eos_id,)
        return tuple(sorted({*own, *named}))


@dataclass(frozen=True)
class Vocabulary(AnyVocabulary):
    """Byte-level BPE: everything that `Tokenizer` needs and the exporters write."""

    ranks: dict[bytes, int]  # of every token that BPE can make, all 256 bytes included
    pattern: SplitPattern
    ids: tuple[int, ...] | None = None  # by rank, where ids differ from ranks; -1: a byte without a token, dropped
    whole_pieces: bool = True  # a piece that is a token is taken whole even where no merges lead to it

    @property
    def pre(self) -> str:
        return self.pattern.name

    def own_tokens(self) -> dict[int, bytes]:
        if self.ids is None:
            return dict(zip(self.ranks.values(), self.ranks, strict=True))
        by_id = dict(zip(map(self.ids.__getitem__, self.ranks.values()), self.ranks, strict=True))
        by_id.pop(-1, None)  # bytes without a token
        return by_id

    @cached_property
    def _bpe(self) -> ByteBPE:
        return ByteBPE(self.ranks, self.pattern)

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        ranks, ids = self._bpe.encode(text), self.ids
        return ranks if ids is None else [token_id for rank in ranks if (token_id := ids[rank]) >= 0]

    @cached_property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The pairs of the merge list, first merge first."""
        return merges_from_ranks(self.ranks)

    def extended(self, tokens: Mapping[bytes, int]) -> Vocabulary:
        """With `tokens` of a vocabulary expansion; known tokens and ids in use are skipped, as in the original."""
        if self.ids is not None:
            raise FormatError("only a vocabulary whose ranks are its ids (qwen.tiktoken) can be extended")
        taken = set(self.token_of_id)
        new: dict[bytes, int] = {}
        for token, token_id in tokens.items():
            if token not in self.ranks and token_id not in taken:
                new[token] = token_id
                taken.add(token_id)
        return replace(self, ranks=self.ranks | new)


def qwen(ranks: dict[bytes, int]) -> Vocabulary:
    """Qwen-1's vocabulary over `ranks`: 208 control tokens after the last rank, NFC, no BOS."""
    added = tuple(AddedToken(name, len(ranks) + at, normalized=True) for at, name in enumerate(QWEN_CONTROL_TOKENS))
    end = added[0].id
    return Vocabulary(ranks, QWEN, added=added, nfc=True, eos_id=end, pad_id=end, max_length=QWEN_MAX_LENGTH)


def merges_from_ranks(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that makes each token, in the order of ranks; tokens that no pair makes have none."""
    merges: list[tuple[bytes, bytes]] = []
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    for token in sorted(ranks, key=ranks.__getitem__):
        if pair := next(_pairs(token, ranks, halves), None):
            halves[token] = pair
            merges.append(pair)
        elif len(token) > 1 and len(parts := bpe_parts(token, ranks, ranks[token])) == 2:
            merges.append((parts[0], parts[1]))  # from tokens that are themselves made in an unusual order
    return merges


def _pairs(
    token: bytes, ranks: Mapping[bytes, int], halves: Mapping[bytes, tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes]]:
    """The pair (at most one) of which BPE makes `token`, both halves bytes or keys of `halves`."""
    rank = ranks[token]
    for cut in range(1, len(token)):
        left, right = token[:cut], token[cut:]
        known = (cut == 1 or left in halves) and (len(right) == 1 or right in halves)
        if known and _meets(left, right, rank, ranks, halves):
            yield left, right


def ranks_from_merges(merges: Iterable[tuple[bytes, bytes]], first: Sequence[bytes], where: object) -> dict[bytes, int]:
    """Ranks for tiktoken under which it merges as the list says; `first` are the tokens of one byte.

    A listed pair can only ever merge if BPE of its bytes with the earlier merges ends in exactly that pair. Where it
    does, the token gets the merge's place as its rank, and any other pair with the same bytes can never come up; where
    it does not, the merge never happens in any text and the token is left out. Both hold because a trained list uses
    a token only after the merge that makes it; FormatError, naming `where`, for one that does otherwise.
    """
    ranks = {token: rank for rank, token in enumerate(first)}
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    missing: set[bytes] = set()
    for rank, (left, right) in enumerate(merges, start=len(first)):
        token = left + right
        if token in ranks:
            continue
        if left not in ranks or right not in ranks:
            missing |= {left, right} - ranks.keys()
        elif _meets(left, right, rank, ranks, halves):
            ranks[token] = rank
            halves[token] = (left, right)
    if early := missing & ranks.keys():
        raise FormatError(f"{where}: a merge uses the token {shown(min(early))} before the merge that makes it")
    return ranks


def _meets(
    left: bytes, right: bytes, rank: int, ranks: Mapping[bytes, int], halves: Mapping[bytes, tuple[bytes, bytes]]
) -> bool:
    """Whether BPE of `left + right` leaves these two at `rank`: no earlier merge crosses the seam between them.

    Undoes the merges beside the seam one by one, latest first, and looks whether the two tokens that then face each
    other would have merged before the undone merge happened. Equal ranks go to the leftmost place.
    """
    until, undone_right = rank, False
    while True:
        crossing = ranks.get(left + right, rank)
        if crossing < until or (undone_right and crossing == until):
            return False
        made_left = ranks[left] if len(left) > 1 else -1
        made_right = ranks[right] if len(right) > 1 else -1
        if made_left == made_right == -1:
            return True
        undone_right = made_right >= made_left
        if undone_right:
            until, right = made_right, halves[right][0]
        else:
            until, left = made_left, halves[left][1]
