"""Vocabulary expansion: the original's output byte for byte, and its algorithm told a second time."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shared

from kiloq.core.errors import FormatError
from kiloq.tokenize.expand import expand, read_words
from kiloq.tokenize.export import tiktoken_lines
from kiloq.tokenize.patterns import QWEN
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.tokenize.vocabulary import BYTES, Vocabulary


def test_equals_the_original_byte_for_byte(qwen: Tokenizer, tmp_path: Path) -> None:
    for case in json.loads(shared("goldens", "tokenizer", "extra_vocab.json").read_text()):
        words = tmp_path / "words.tsv"
        words.write_text(case["input_word_tab_freq"], encoding="utf-8")
        made = expand(qwen.vocabulary, read_words(words), case["start_id"])
        lines = tiktoken_lines(made.tokens)
        assert lines == shared("goldens", "tokenizer", case["output_file"]).read_bytes()
        assert lines.decode().splitlines() == case["output_lines"]


def naive(words: dict[str, int]) -> list[bytes]:
    """Count all pairs anew before each merge."""
    parts = {word: [bytes([value]) for value in word.encode()] for word in words}
    made = []
    while True:
        counts: dict[tuple[bytes, bytes], int] = {}
        for word, tokens in parts.items():
            for pair in pairwise(tokens):
                counts[pair] = counts.get(pair, 0) + words[word]
        if not counts:
            return list(dict.fromkeys(made))

        def order(
            pair: tuple[bytes, bytes], counts: dict[tuple[bytes, bytes], int] = counts
        ) -> tuple[int, int, int, bytes]:
            both = pair[0] + pair[1]
            return -counts[pair], len(both.decode("utf-8", "replace")), len(both), both

        best = min(counts, key=order)
        made.append(best[0] + best[1])
        for tokens in parts.values():
            at = 0
            while at + 1 < len(tokens):
                if (tokens[at], tokens[at + 1]) == best:
                    tokens[at : at + 2] = [best[0] + best[1]]
                at += 1


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text("abé", min_size=2, max_size=8), st.integers(0, 4), max_size=7))
def test_equals_counting_anew(words: dict[str, int]) -> None:
    bytes_only = Vocabulary({byte: rank for rank, byte in enumerate(BYTES)}, QWEN)
    assert list(expand(bytes_only, words, 256).tokens) == naive(words)


def test_every_word_becomes_one_token(qwen: Tokenizer) -> None:
    words = {"zyxwvuts": 3, "zyxwvutsrq": 1, "千里之行始于足下": 9, "hello": 5, "two words": 5, "12": 5}
    made = expand(qwen.vocabulary, words, qwen.vocab_size)
    assert set(made.skipped) == {"hello", "two words", "12"}
    expanded = Tokenizer(qwen.vocabulary.extended(made.tokens))
    for word in set(words) - set(made.skipped):
        (token_id,) = expanded.encode(word)
        assert token_id == made.tokens[word.encode()] and expanded.decode([token_id]) == word


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"word\n", "line 1"), (b"a\t1\nb\tx\n", "line 2"), (b"\t5\n", "line 1"), (b"a\t-1\n", "line 1"), (b"\xff\t1\n", "UTF-8"),
     (b"a\t" + b"9" * 5000, "line 1")],
)  # fmt: skip
def test_bad_word_lists(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "words.tsv"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=said):
        read_words(path)


def test_words_are_normalised_and_blank_lines_skipped(tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    path.write_bytes("e\u0301\t2\r\n\n a b\t3\n".encode())
    assert read_words(path) == {"é": 2, " a b": 3}
