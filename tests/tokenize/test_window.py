"""Too long conversations: the original's rule to the last id, and ours."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import jsonl_gz, shared

from kiloq.core.errors import ContextError, UsageError
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.tokenize.window import fit, qwen1_context, qwen1_decode


def test_context_equals_the_original(qwen: Tokenizer) -> None:
    for row in jsonl_gz("goldens", "chatml", "make_context.jsonl.gz"):
        history = [(query, answer) for query, answer in row["history"]]
        context = qwen1_context(
            qwen, row["query"], history, row["system"], row["max_window_size"], row["chat_format"], special="all"
        )
        assert context == (row["raw_text"], row["ids"])


def test_defaults_equal_the_original(qwen: Tokenizer) -> None:
    defaults = json.loads(shared("goldens", "chatml", "stop_words.json").read_text())["make_context_defaults"]
    assert qwen1_context(qwen, "hi") == (defaults["query_hi_raw"], defaults["query_hi_ids"])
    with pytest.raises(UsageError, match="chat format"):
        qwen1_context(qwen, "hi", chat_format="other")  # type: ignore[arg-type]


def test_decoding_equals_the_original_but_for_its_two_mistakes(qwen: Tokenizer) -> None:
    """Where the original is wrong, its value is derived from ours by doing the same mistake.

    It lost the last token of an answer without a stop token, and cut the prompt off by `raw_text_len`, which is not
    the length of the decoded prompt when the prompt was not NFC: then the answer begins late by the difference.
    """
    stops = {151_644, 151_645}
    wrong = 0
    for row in jsonl_gz("goldens", "chatml", "decode_tokens.jsonl.gz"):
        ids, context, chat_format = row["generated_ids"], row["context_ids"], row["chat_format"]
        lost = chat_format == "chatml" and not stops & set(ids)
        for errors in ("replace", "ignore"):
            kept = ids[:-1] if lost else ids
            late = row["raw_text_len"] - len(qwen.decode(context, errors=errors))
            text, reason = qwen1_decode(qwen, kept, chat_format, context_length=len(context), errors=errors)
            if late:
                end = next((at for at, i in enumerate(ids) if i in stops and chat_format == "chatml"), len(kept))
                whole = qwen.decode([*context, *kept[:end]], errors=errors)[row["raw_text_len"] :]
                assert unicodedata.is_normalized("NFC", whole)
                text = whole.replace("<|endoftext|>", "").strip() if chat_format == "raw" else whole.strip()
            assert text == row[errors]
            wrong += bool(late or lost)
            if lost and ids:
                reason = qwen1_decode(qwen, ids, chat_format, context_length=len(context))[1]
            assert reason == row["end_reason"]
    assert wrong > 100


turns = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=6)


@given(turns=turns, system=st.booleans(), budget=st.integers(20, 250))
def test_fit_drops_the_oldest_whole_turns_and_only_as_many_as_needed(
    qwen: Tokenizer, turns: list[tuple[int, int]], system: bool, budget: int
) -> None:
    talk = [{"role": "system", "content": "Be brief."}] if system else []
    for asked, said in turns:
        talk += [{"role": "user", "content": "q" * asked * 3}, {"role": "assistant", "content": "a b" * said}]
    talk.append({"role": "user", "content": "the current query"})
    try:
        kept, dropped = fit(qwen, talk, budget)
    except ContextError as error:
        least = len(qwen.chat([*talk[: len(talk[:1]) * system], talk[-1]]))
        assert least > budget and f"{least:,}" in str(error) and f"{budget:,}" in str(error)
        return
    assert len(qwen.chat(kept)) <= budget
    assert kept[-1] == talk[-1] and kept[:system] == talk[:system]
    assert [*talk[:system], *dropped, *kept[system:]] == talk
    assert len(dropped) % 2 == 0 and (not dropped or kept[int(system)]["role"] == "user")
    if dropped:
        assert len(qwen.chat([*talk[:system], *dropped[-2:], *kept[system:]])) > budget


def test_fit_keeps_a_tool_call_with_its_question(qwen: Tokenizer) -> None:
    current = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "w", "arguments": {}}]},
        {"role": "tool", "content": "sun"},
    ]
    old = [{"role": "user", "content": "x" * 500}, {"role": "assistant", "content": "y" * 500}]
    assert fit(qwen, [*old, *current], len(qwen.chat(current))) == (current, old)
    with pytest.raises(ContextError):
        fit(qwen, [*old, *current], len(qwen.chat(current)) - 1)
