"""Byte-level BPE: equal to tiktoken and to the naive definition, and linear and crash-free on runs."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import naive_bpe

from kiloq.tokenize import bpe
from kiloq.tokenize.bpe import FIRST_CHARS, ByteBPE
from kiloq.tokenize.normalize import nfc
from kiloq.tokenize.patterns import GPT2, LLAMA3, QWEN, SMOLLM, SplitPattern
from kiloq.tokenize.tokenizer import Tokenizer

PATTERNS = (QWEN, LLAMA3, GPT2, SMOLLM)
ATOMS = [
    "a",
    "B",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "1",
    "٣",
    "½",
    "!",
    "'s",
    "'",
    "中",
    "é",
    "e\u0301",
    "\u3000",
    "\u200d",
    "😀",
    "ſ",
    "-",
]
# Runs long enough for the cutting of bpe.py to take part (RUN_CHARS twice, BLOCK_BYTES several times).
runs = st.tuples(st.sampled_from(ATOMS), st.integers(1, 5), st.sampled_from([1, 2, 3, 40, 127, 300, 701, 1500]))
mixtures = st.lists(
    st.one_of(
        runs.map(lambda run: run[0] * run[1] * run[2]),
        st.lists(st.sampled_from(ATOMS), max_size=40).map("".join),
        st.lists(st.sampled_from("abcdefgh"), min_size=200, max_size=900).map("".join),
        st.lists(st.sampled_from(" \t\n\r\u3000"), min_size=200, max_size=900).map("".join),
        st.lists(st.sampled_from("!?.-'\u0301"), min_size=200, max_size=900).map("".join),
    ),
    max_size=6,
).map("".join)


@pytest.fixture(scope="session")
def encoders(qwen: Tokenizer) -> dict[SplitPattern, ByteBPE]:
    return {pattern: ByteBPE(qwen.vocabulary.ranks, pattern) for pattern in PATTERNS}


@settings(max_examples=150, deadline=None)
@given(text=mixtures, pattern=st.sampled_from(PATTERNS))
def test_equals_tiktoken_where_tiktoken_survives(
    encoders: dict[SplitPattern, ByteBPE], text: str, pattern: SplitPattern
) -> None:
    encoder = encoders[pattern]
    assert encoder.encode(text) == encoder._tiktoken.encode_ordinary(text)


def test_equals_the_definition_on_small_random_vocabularies() -> None:
    """Random ranks over two letters make tokens that depend on each other over long distances, and unreachable ones."""
    chance = random.Random(7)
    for _ in range(60):
        tokens = sorted({bytes(chance.choices(b"ab", k=chance.randint(2, 7))) for _ in range(14)})
        chance.shuffle(tokens)
        ranks = {bytes([value]): value for value in range(256)} | {t: 256 + at for at, t in enumerate(tokens)}
        encoder = ByteBPE(ranks, QWEN)
        text = "".join(chance.choices(("ab", "a", "b", "aab" * 90, "a" * 300, "ba" * 150), k=5))
        assert encoder.encode(text) == naive_bpe.encode(text, ranks, QWEN.expression)


def test_a_window_that_is_an_unreachable_token_is_not_taken_whole() -> None:
    ranks = {bytes([value]): value for value in range(256)} | {b"ab": 256, b"bc": 257, b"abc" * 100: 258}
    text = "abc" * 400
    assert ByteBPE(ranks, QWEN).encode(text) == naive_bpe.encode(text, ranks, QWEN.expression)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_a_letter_or_digit_run_ends_its_piece(pattern: SplitPattern) -> None:
    """The property that lets `encode` cut before a long run without looking at what follows."""
    chance = random.Random(3)
    for _ in range(300):
        text = "".join(chance.choices(ATOMS, k=12))
        ends = {found.end() for found in regex.finditer(pattern.expression, text)}
        assert len(text) in ends
        for at in range(1, len(text)):
            pair = text[at - 1 : at + 1]
            if regex.fullmatch(r"\p{L}\P{L}|\p{N}\P{N}", pair):
                assert at in ends, (text, at)


MEGABYTE = 1_000_000
LONG = {
    "one letter": "a" * MEGABYTE,
    "spaces": " " * MEGABYTE,
    "spaces then a letter": " " * MEGABYTE + "x",
    "one Han character": "中" * (MEGABYTE // 3),
    "digits": "7" * MEGABYTE,
    "Arabic digits": "٣" * (MEGABYTE // 2),
    "newlines": "\n" * MEGABYTE,
    "CR LF": "\r\n" * (MEGABYTE // 2),
    "punctuation": "!" * MEGABYTE,
    "two signs": "-=" * (MEGABYTE // 2),
    "ideographic spaces": "\u3000" * (MEGABYTE // 3) + "x",
    "combining marks": "a" + "\u0301" * (MEGABYTE // 2),
    "combining marks in changing order": "a" + "\u0301\u0316" * (MEGABYTE // 4),
    "alternating letters": "ab" * (MEGABYTE // 2),
    "tabs and spaces": " \t" * (MEGABYTE // 2) + "x",
    "spaces and newlines": " \n" * (MEGABYTE // 2) + "x",
    "emoji": "😀" * (MEGABYTE // 4),
    "zero bytes": "\0" * MEGABYTE,
}


class CountingTiktoken:
    """Passes everything on to tiktoken and notes how long the texts and pieces were that it was given."""

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding
        self.texts: list[str] = []
        self.piece_bytes: list[int] = []

    def encode_ordinary(self, text: str) -> list[int]:
        self.texts.append(text)
        return self._encoding.encode_ordinary(text)

    def _encode_single_piece(self, piece: str | bytes) -> list[int]:
        self.piece_bytes.append(len(piece))
        return self._encoding._encode_single_piece(piece)

    def decode_bytes(self, ids: list[int]) -> bytes:
        return self._encoding.decode_bytes(ids)


@pytest.mark.parametrize("name", LONG)
def test_a_megabyte_of_anything_is_linear(encoders: dict[SplitPattern, ByteBPE], name: str) -> None:
    """Nothing long ever reaches tiktoken, and all that reaches it together is a small multiple of the text.

    Seconds are measured by benchmarks/tokenizer_worst_cases.py.
    """
    text = nfc(LONG[name])
    encoder = copy.copy(encoders[QWEN])
    counting = CountingTiktoken(encoder._tiktoken)
    encoder.__dict__.pop("_encode_block", None)
    encoder._tiktoken = counting
    ids = encoder.encode(text)
    assert counting.decode_bytes(ids) == text.encode()
    pieces = [
        len(piece) for part in counting.texts for piece in regex.findall(QWEN.expression, part[: 4 * bpe.RUN_CHARS])
    ]
    assert max(pieces, default=0) <= 2 * bpe.RUN_CHARS
    assert all(encoders[QWEN]._find_long_run(part, 0) is None for part in counting.texts)
    assert max(counting.piece_bytes, default=0) <= 8 * bpe.BLOCK_BYTES
    assert sum(counting.piece_bytes) + sum(map(len, counting.texts)) <= 8 * len(text.encode())


@pytest.mark.parametrize("name", LONG)
def test_ids_of_a_long_run_are_those_of_the_definition(encoders: dict[SplitPattern, ByteBPE], name: str) -> None:
    """The same texts at a size (60,000 characters) where tiktoken itself still answers."""
    text = nfc(LONG[name][:30_000] + LONG[name][-30_000:])
    encoder = encoders[QWEN]
    assert encoder.encode(text) == encoder._tiktoken.encode_ordinary(text)


def test_runs_shorter_than_two_samples_are_left_to_tiktoken(encoders: dict[SplitPattern, ByteBPE]) -> None:
    assert encoders[QWEN]._find_long_run("a" * bpe.RUN_CHARS + " b", 1) is None
    assert encoders[QWEN]._find_long_run(" b" + "a" * (2 * bpe.RUN_CHARS), 0) is not None


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.characters(max_codepoint=127), max_size=FIRST_CHARS)
    | st.text("aA'sStT 1\n\r\t\x0b\x1c.", max_size=60)
)
def test_what_is_merged_before_tiktoken_is_set_up_is_the_same(encoders: dict[SplitPattern, ByteBPE], text: str) -> None:
    for encoder in encoders.values():
        assert encoder._encode_first(text) == encoder._tiktoken.encode_ordinary(text)


def test_tiktoken_is_set_up_for_what_is_longer_or_not_ascii(encoders: dict[SplitPattern, ByteBPE]) -> None:
    used = next(iter(encoders.values()))
    for texts, set_up in [
        (["a" * FIRST_CHARS], False), (["a" * FIRST_CHARS, "b"], True), (["a" * (FIRST_CHARS + 1)], True), (["é"], True),
    ]:  # fmt: skip
        encoder = ByteBPE(used._ranks, used._pattern)
        for text in texts:
            assert encoder.encode(text) == used._tiktoken.encode_ordinary(text)
        assert ("_tiktoken" in vars(encoder)) == set_up
