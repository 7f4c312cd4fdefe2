"""The streaming decoder: nothing lost, nothing early, U+FFFD only for what can no longer become a character."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import jsonl_gz

from kiloq.tokenize.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def id_of_byte(qwen: Tokenizer) -> list[int]:
    return [qwen.vocabulary.ranks[bytes([value])] for value in range(256)]


def test_every_multi_byte_token_cut_at_every_byte(qwen: Tokenizer, id_of_byte: list[int]) -> None:
    """Each token whose bytes are whole characters, byte by byte: pieces appear exactly when a character is complete."""
    tokens = [token for token in qwen.vocabulary.ranks if max(token) > 127]
    whole = 0
    for token in tokens:
        stream = qwen.stream()
        pieces = [stream.push(id_of_byte[value]) for value in token]
        text = token.decode("utf-8", "replace")
        assert "".join(pieces) + stream.flush() == text
        if "\ufffd" not in text:
            whole += 1
            assert "\ufffd" not in "".join(pieces)
            ends = [at for at, piece in enumerate(pieces) if piece]
            sizes = [len(character.encode()) for character in text]
            assert ends == [sum(sizes[: at + 1]) - 1 for at in range(len(sizes))]
    assert whole > 50_000 and len(tokens) > whole


def test_prefixes_of_the_original(qwen: Tokenizer) -> None:
    """The original decodes every prefix with errors="ignore", which agrees as long as nothing invalid is pending."""
    for row in jsonl_gz("goldens", "tokenizer", "stream_prefixes.jsonl.gz"):
        stream, text = qwen.stream(errors="ignore", skip_special=True), ""
        for token_id, prefix in zip(row["ids"], row["prefixes_ignore_skip"], strict=True):
            text += stream.push(token_id)
            assert text == prefix


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 151_850), st.integers(0, 255), st.sampled_from([151_643, 151_645])), max_size=30),
    st.sampled_from(["replace", "ignore"]),
    st.booleans(),
)
def test_pieces_join_to_the_decoded_text(qwen: Tokenizer, ids: list[int], errors: str, skip: bool) -> None:
    stream = qwen.stream(errors=errors, skip_special=skip)
    assert "".join(map(stream.push, ids)) + stream.flush() == qwen.decode(ids, errors=errors, skip_special=skip)


@given(st.binary(max_size=12))
def test_invalid_bytes_are_shown_as_soon_as_they_are_known(qwen: Tokenizer, id_of_byte: list[int], data: bytes) -> None:
    """After each byte, only what may still become a character is held back."""
    stream, text = qwen.stream(), ""
    for at, value in enumerate(data, start=1):
        text += stream.push(id_of_byte[value])
        assert text == codecs.getincrementaldecoder("utf-8")("replace").decode(data[:at])


def test_strict_raises(qwen: Tokenizer, id_of_byte: list[int]) -> None:
    with pytest.raises(UnicodeDecodeError):
        qwen.stream(errors="strict").push(id_of_byte[0xFF])
    stream = qwen.stream(errors="strict")
    assert stream.push(id_of_byte[0xE4]) == ""
    with pytest.raises(UnicodeDecodeError):
        stream.flush()
