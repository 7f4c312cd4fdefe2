"""Constrained answers: whatever is drawn from the allowed tokens has the form, and only whole texts may end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import default_model, qwen_vocabulary

from kiloq.core.errors import KiloqError, MissingError, UsageError
from kiloq.generate import constrain
from kiloq.generate.constrain import Compiler, Constraint, ConstraintSpec
from kiloq.tokenize.patterns import QWEN
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.tokenize.vocabulary import BYTES, AddedToken, Vocabulary

END, START, ROWS = 256, 257, 300  # of the vocabulary of bytes: its control tokens, and rows with those that only pad
STRUCTURE = frozenset(b'"}],:0')
Answer = tuple[list[int], str | None]


def bytes_tokenizer() -> Tokenizer:
    added = (AddedToken("<|im_end|>", END), AddedToken("<|im_start|>", START))
    return Tokenizer(Vocabulary({byte: i for i, byte in enumerate(BYTES)}, QWEN, added=added, eos_id=END))


@pytest.fixture(scope="module")
def tiny() -> Compiler:
    return Compiler(bytes_tokenizer(), (END,), ROWS)


@pytest.fixture(scope="module")
def qwen_tokenizer() -> Tokenizer:
    return Tokenizer.load(qwen_vocabulary())


@pytest.fixture(scope="module")
def qwen(qwen_tokenizer: Tokenizer) -> Compiler:
    return Compiler(qwen_tokenizer, qwen_tokenizer.eos_ids, 151_936)


def write(constraint: Constraint, tokenizer: Tokenizer, chance: np.random.Generator, steps: int = 300) -> Answer:
    """Draws an answer: its ids, and its text if it came to an end.

    Half of the tokens come from those that bring JSON to an end, or random strings would go on for ever.
    """
    ids: list[int] = []
    structure = np.array([i for i in range(tokenizer.vocab_size) if tokenizer.vocabulary.tokens[i] in JSON_BYTES])
    special = np.array(sorted(tokenizer.special_tokens.values()))
    for _ in range(steps):
        allowed_V = constraint.allowed()
        ends = allowed_V[list(tokenizer.eos_ids)]
        assert ends.all() or not ends.any()
        assert np.count_nonzero(allowed_V[special]) == np.count_nonzero(ends), "a control token that is no end"
        assert not allowed_V[tokenizer.vocab_size :].any(), "a row that only pads the embedding"
        if ends.any() and (constraint.done or chance.random() < 0.5):
            constraint.accept(tokenizer.eos_ids[0])
            assert constraint.done
            return ids, tokenizer.decode_bytes(ids).decode("utf-8")  # strict: no half characters at an end
        assert not constraint.done
        allowed_V[list(tokenizer.eos_ids)] = False
        likely = structure[allowed_V[structure]]
        choices = likely if len(likely) and chance.random() < 0.5 else np.flatnonzero(allowed_V)
        ids.append(int(chance.choice(choices)))
        constraint.accept(ids[-1])
    return ids, None


JSON_BYTES = frozenset(bytes([byte]) for byte in STRUCTURE)


def is_person(value: Any) -> bool:
    return (
        set(value) - {"电话"} == {"姓名", "age", "mood"}
        and isinstance(value["姓名"], str)
        and 1 <= len(value["姓名"]) <= 5
        and isinstance(value["age"], int)
        and 0 <= value["age"] <= 150
        and value["mood"] in ("😀", "无聊", None)
        and all(isinstance(number, (int, float)) for number in value.get("电话", []))
    )


PERSON = {
    "type": "object",
    "properties": {
        "姓名": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["😀", "无聊", None]},
        "电话": {"type": "array", "items": {"type": "number"}, "maxItems": 3},
    },
    "required": ["姓名", "age", "mood"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 3}},
    "$ref": "#/$defs/node",
}


def is_tree(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 3 and all(map(is_tree, value))


FORMS: dict[str, tuple[ConstraintSpec, Callable[[str], object]]] = {
    "object": (ConstraintSpec.json_object(), lambda text: isinstance(json.loads(text), dict)),
    "person": (ConstraintSpec.json_schema(PERSON), lambda text: is_person(json.loads(text))),
    "tree": (ConstraintSpec.json_schema(TREE), lambda text: is_tree(json.loads(text))),
    "date": (
        ConstraintSpec.regex(r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]"),
        re.compile(r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]").fullmatch,
    ),
    "chinese": (ConstraintSpec.regex("答案[:：] ?[一-龥]{1,8}[😀😁]?"), re.compile("答案[:：] ?[一-龥]{1,8}[😀😁]?").fullmatch),
    "anchored": (ConstraintSpec.regex(r"^a/\\b+$"), re.compile(r"^a/\\b+$").fullmatch),
    "choice": (ConstraintSpec.choice(["yes", "yes!", 'n"o\n', "也许😀", "\\"]), ["yes", "yes!", 'n"o\n', "也许😀", "\\"].__contains__),
    "sum": (ConstraintSpec.grammar('start: N ("+" N)~0..4\nN: /[1-9][0-9]?/'), re.compile(r"[1-9]\d?(\+[1-9]\d?){0,4}").fullmatch),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_random_answers_have_the_form(name: str, tiny: Compiler, qwen: Compiler, qwen_tokenizer: Tokenizer) -> None:
    spec, check = FORMS[name]
    for compiler, tokenizer in ((tiny, bytes_tokenizer()), (qwen, qwen_tokenizer)):
        chance = np.random.default_rng(7)
        texts = [write(compiler.compile(spec), tokenizer, chance)[1] for _ in range(8)]
        finished = [text for text in texts if text is not None]
        assert len(finished) >= 5
        for text in finished:
            assert check(text), text


@pytest.mark.default_model
def test_a_vocabulary_without_all_bytes_works() -> None:
    tokenizer = Tokenizer.load(default_model())
    compiler = Compiler(tokenizer, tokenizer.eos_ids, 49_152)
    spec, check = FORMS["person"]
    chance = np.random.default_rng(3)
    texts = [write(compiler.compile(spec), tokenizer, chance)[1] for _ in range(8)]
    assert all(check(text) for text in texts if text is not None)
    assert sum(text is not None for text in texts) >= 5


def test_a_prescribed_text_is_written_in_the_models_own_tokens(qwen: Compiler, qwen_tokenizer: Tokenizer) -> None:
    text = "The answer is 你好, as <|im_end|> said."
    constraint = qwen.compile(ConstraintSpec.choice([text]))
    ids = []
    while not constraint.done:
        (token,) = np.flatnonzero(constraint.allowed())
        ids.append(int(token))
        constraint.accept(ids[-1])
    assert ids == qwen_tokenizer.encode(text)


def test_a_letter_may_be_spread_over_tokens(tiny: Compiler) -> None:
    constraint = tiny.compile(ConstraintSpec.regex("[你😀]"))
    for byte in "😀".encode():
        assert not constraint.allowed()[END]
        constraint.accept(byte)
    assert constraint.done
    assert np.flatnonzero(constraint.allowed()).tolist() == [END]


def test_an_answer_may_end_exactly_where_the_form_may(tiny: Compiler) -> None:
    constraint = tiny.compile(ConstraintSpec.regex("ab(cd)?"))
    seen = []
    for byte in b"abcd":
        seen.append((bool(constraint.allowed()[END]), constraint.done))
        constraint.accept(byte)
    assert seen == [(False, False), (False, False), (True, False), (False, False)]
    assert constraint.done
    with pytest.raises(KiloqError, match="not allowed"):
        constraint.accept(START)
    constraint.accept(END)
    assert np.flatnonzero(constraint.allowed()).tolist() == [END]
    with pytest.raises(KiloqError, match="not allowed"):
        constraint.accept(ord("a"))


def test_an_end_before_the_end_and_tokens_out_of_form_are_refused(tiny: Compiler) -> None:
    for token in (END, START, -1, ROWS - 1, ROWS, 10**6, ord("b")):
        constraint = tiny.compile(ConstraintSpec.regex("a+"))
        with pytest.raises(KiloqError):
            constraint.accept(token)


@pytest.mark.parametrize("width", [ROWS, END, 100, ROWS + 77])
def test_logits_of_any_width_are_masked(tiny: Compiler, width: int) -> None:
    constraint = tiny.compile(ConstraintSpec.regex("[ab]?"))
    logits_V = np.linspace(-5, 5, width, dtype=np.float32)
    masked_V = constraint.apply(logits_V)
    expected = [token for token in (ord("a"), ord("b"), END) if token < width]
    assert np.flatnonzero(np.isfinite(masked_V)).tolist() == expected
    assert masked_V.dtype == np.float32 and masked_V.shape == (width,)
    np.testing.assert_array_equal(masked_V[expected], logits_V[expected])
    assert np.isfinite(logits_V).all(), "the caller's logits are left alone"


def test_a_fork_goes_its_own_way(tiny: Compiler) -> None:
    first = tiny.compile(ConstraintSpec.choice(["left", "lump"]))
    first.accept(ord("l"))
    second = first.fork()
    for byte in b"eft":
        first.accept(byte)
    assert first.done and not second.done
    for byte in b"ump":
        second.accept(byte)
    assert second.done
    assert first.fork().done


def test_one_spec_gives_independent_constraints(tiny: Compiler) -> None:
    spec = ConstraintSpec.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    first, second = tiny.compile(spec), tiny.compile(ConstraintSpec.json_schema(json.loads(spec.text)))
    first.accept(ord("{"))
    assert not second.allowed()[ord("}")] and first.allowed()[ord("}")]


def test_white_space_in_json_is_bounded(tiny: Compiler) -> None:
    constraint = tiny.compile(ConstraintSpec.json_object())
    for byte in b"{\n" + b" " * 40:
        constraint.accept(byte)
    assert not constraint.allowed()[list(b" \n\t")].any()


def test_answers_with_no_end_token_are_refused() -> None:
    with pytest.raises(UsageError, match="end token"):
        Compiler(bytes_tokenizer(), (ROWS + 5,), ROWS).compile(ConstraintSpec.json_object())


def test_without_llguidance_the_command_to_get_it_is_told(tiny: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingError, match="pip install"):
        tiny.compile(ConstraintSpec.json_object())


def test_a_full_lexer_is_replaced_for_the_answer_and_for_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of one spec share llguidance's lexer states, which are limited: the tenth must do as well as the first."""
    monkeypatch.setitem(constrain.LIMITS, "max_lexer_states", 1_000)
    tokenizer = bytes_tokenizer()
    compiler = Compiler(tokenizer, (END,), ROWS)
    spec = ConstraintSpec.regex("(a|b)*a(a|b){200}c")
    chance = np.random.default_rng(0)
    for _ in range(10):
        text = write(compiler.compile(spec), tokenizer, chance, steps=2_000)[1]
        assert text is not None and re.fullmatch(spec.text, text)


def test_an_answer_that_cannot_go_on_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(constrain.LIMITS, "max_lexer_states", 1_000)
    compiler = Compiler(bytes_tokenizer(), (END,), ROWS)
    spec = ConstraintSpec.regex("(a|b)*a(a|b){900}c|d")
    constraint = compiler.compile(spec)
    chance = np.random.default_rng(0)
    with pytest.raises(KiloqError, match="simplify the form"):
        for _ in range(5_000):
            constraint.accept(int(chance.choice([ord("a"), ord("b")])))
            constraint.allowed()
    other = compiler.compile(spec)
    other.accept(ord("d"))
    assert other.done
