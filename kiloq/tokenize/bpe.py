"""Byte-level BPE on tiktoken, made linear and crash-free for any text.

tiktoken is exact and fast on ordinary text, but one piece of 1 MB costs it five times as much per byte, and on 1 MB of
spaces its regular expression engine overflows and aborts. So text is sampled every RUN_CHARS characters; where a run
of one class (letters, digits, white space, the rest) covers a sample, the pieces around it are cut here with the same
expression in the `regex` package, which does not overflow, and a long piece is merged block by block,
the blocks joined as `seams.py` explains. tiktoken takes 40 ms to take in 50,000 tokens, which a command with a short
prompt need not wait for: the first FIRST_CHARS are merged here, if they are ASCII (what letters are beyond that
depends on the version of Unicode that an expression engine knows).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import regex  # type: ignore[import-untyped]

from kiloq.tokenize.patterns import SplitPattern
from kiloq.tokenize.seams import join

if TYPE_CHECKING:
    import tiktoken

RUN_CHARS = 128  # ours: runs of twice this length are always found; tiktoken is still fast on shorter ones
BLOCK_BYTES = 256  # ours: tiktoken's cost per byte grows from here on
CACHED_BLOCKS = 4096  # ours: at most 2 MB
FIRST_CHARS = 256  # ours: 5 ms at worst
NO_RANK = 1 << 62  # above all ranks


class ByteBPE:
    """Text without control tokens -> ranks of BPE tokens."""

    def __init__(self, ranks: dict[bytes, int], pattern: SplitPattern) -> None:
        self._ranks = ranks
        self._pattern = pattern
        self._first_chars = FIRST_CHARS

    @cached_property
    def _tiktoken(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            self._pattern.name, pat_str=self._pattern.expression, mergeable_ranks=self._ranks, special_tokens={}
        )

    def encode(self, text: str) -> list[int]:
        """Ranks of the tokens of `text` (well-formed Unicode)."""
        if len(text) <= self._first_chars and text.isascii():
            self._first_chars -= len(text)
            return self._encode_first(text)
        ranks: list[int] = []
        start = 0  # what lies before is encoded, and a piece ends here
        while (run := self._find_long_run(text, start)) is not None:
            cut = self._piece_end_before(text, start, run)
            ranks += self._tiktoken.encode_ordinary(text[start:cut])
            start = self._encode_beyond(text, cut, run, ranks)
        ranks += self._tiktoken.encode_ordinary(text[start:])
        return ranks

    def _encode_first(self, text: str) -> list[int]:
        ranks: list[int] = []
        for found in self._piece.finditer(text):
            piece = found.group().encode()
            parts = [piece] if piece in self._ranks else bpe_parts(piece, self._ranks, NO_RANK)
            ranks += map(self._ranks.__getitem__, parts)
        return ranks

    def pieces(self, text: str) -> int:
        """The number of pieces that the split pattern cuts `text` into."""
        return sum(1 for _ in self._piece.finditer(text))

    @cached_property
    def _long_run(self) -> regex.Pattern[str]:
        classes = [r"\p{L}", r"\s", r"[^\s\p{L}\p{N}]"]
        if self._pattern.digits != "triple":  # pieces of three digits are short, and tiktoken is fast enough on them
            classes.append(r"\p{N}")
        return regex.compile("|".join(f"{one}{{{RUN_CHARS}}}" for one in classes))

    def _find_long_run(self, text: str, start: int) -> int | None:
        """A position inside a run of RUN_CHARS characters of one class, at or after `start`."""
        first = -(-start // RUN_CHARS) * RUN_CHARS
        match = self._long_run.match
        return next((at for at in range(first, len(text), RUN_CHARS) if match(text, at)), None)

    @cached_property
    def _last_piece_end(self) -> regex.Pattern[str]:
        return regex.compile(r"(?r)(?<=\p{L})\P{L}|(?<=\p{N})\P{N}")

    def _piece_end_before(self, text: str, start: int, run: int) -> int:
        """The last position in [start, run] where a letter or a digit run, and so a piece, is known to end."""
        found = self._last_piece_end.search(text, start, run + 1)
        return max(start, found.start()) if found else start

    @cached_property
    def _piece(self) -> regex.Pattern[str]:
        return regex.compile(self._pattern.expression, regex.VERSION0)

    @cached_property
    def _digits(self) -> regex.Pattern[str]:
        return regex.compile(r"\p{N}+")

    def _encode_beyond(self, text: str, start: int, run: int, ranks: list[int]) -> int:
        """Append the tokens of the pieces from `start` to the first end after `run`; return that end."""
        while start <= run:
            if self._pattern.digits == "single" and (digits := self._digits.match(text, start)):
                of_digit = {digit: self._encode_block(digit) for digit in set(digits.group())}
                ranks += chain.from_iterable(map(of_digit.__getitem__, digits.group()))
                start = digits.end()
            else:
                piece = self._piece.match(text, start)
                assert piece is not None, "a split pattern covers every character"
                ranks += self._encode_piece(piece.group().encode())
                start = piece.end()
        return start

    @cached_property
    def _encode_block(self) -> Callable[[str | bytes], list[int]]:
        return lru_cache(CACHED_BLOCKS)(self._tiktoken._encode_single_piece)  # runs are mostly repetitions

    def _encode_piece(self, piece: bytes) -> list[int]:
        ranks = list(self._encode_block(piece[:BLOCK_BYTES]))
        for at in range(BLOCK_BYTES, len(piece), BLOCK_BYTES):
            join(ranks, self._encode_block(piece[at : at + BLOCK_BYTES]), self._encode_window)
        return ranks

    def _encode_window(self, ranks: list[int], whole: bool) -> list[int] | None:
        """BPE of the bytes of `ranks`; None for a part that is a token: tiktoken takes it whole, BPE might not."""
        window = self._tiktoken.decode_bytes(ranks)
        return None if window in self._ranks and not whole else self._encode_block(window)


def bpe_parts(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    """BPE of a short `token` with the merges of lower rank than `below` (quadratic)."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 1:
        found = [ranks.get(left + right, below) for left, right in pairwise(parts)]
        lowest = min(found)
        if lowest >= below:
            break
        at = found.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
