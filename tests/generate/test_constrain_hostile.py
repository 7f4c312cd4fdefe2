"""Forms that strangers wrote: each ends in a sentence or in a working constraint, soon, and the process lives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from generate.test_constrain import END, ROWS, START, bytes_tokenizer

from kiloq.core.errors import BusyError, KiloqError, UsageError
from kiloq.generate import constrain
from kiloq.generate.constrain import Compiler, ConstraintSpec
from kiloq.generate.constrain_spec import MAX_ALL_ENUM_ENTRIES, MAX_CHOICES, MAX_DEPTH, MAX_ENUM_ENTRIES

schema, regex, grammar, choice = (
    ConstraintSpec.json_schema,
    ConstraintSpec.regex,
    ConstraintSpec.grammar,
    ConstraintSpec.choice,
)
# A trial is killed after two seconds; what is beyond is the start of a child on a machine that others use, too.
PATIENCE_S = 6.0


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(bytes_tokenizer(), (END,), ROWS)


def nested(value: Any, levels: int) -> dict[str, Any]:
    for _ in range(levels):
        value = {"type": "array", "items": value}
    return dict(value)


def chain(keyword: Callable[[dict[str, str]], dict[str, Any]], links: int) -> dict[str, Any]:
    """Definitions of which each refers to the next."""
    defs = {f"a{i}": keyword({"$ref": f"#/$defs/a{i + 1}"}) for i in range(links)}
    return {"$defs": {**defs, f"a{links}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def refused(make: Callable[[], object]) -> str:
    """The sentence of the UsageError that `make` ends in."""
    with pytest.raises(UsageError) as caught:
        make()
    sentence = str(caught.value)
    assert sentence.isprintable() and len(sentence) < 320, sentence
    assert "0x" not in sentence
    return sentence


BAD_SPECS: dict[str, tuple[Callable[[], object], str]] = {
    "not an object": (lambda: schema(True), "of type bool"),  # type: ignore[arg-type]
    "null": (lambda: schema(None), "null"),  # type: ignore[arg-type]
    "deep": (lambda: schema(nested({}, MAX_DEPTH)), "32 deep"),
    "very deep": (lambda: schema(nested({}, 100_000)), "32 deep"),
    "wide by sharing": (lambda: schema(shared_levels(25)), "65,536 values"),
    "endless": (lambda: schema(endless()), "deep"),
    "long": (lambda: schema({"const": "x" * 65_536}), "at most 65,536"),
    "long enum": (lambda: schema({"enum": list(range(MAX_ENUM_ENTRIES + 1))}), "1,001 entries"),
    "enums": (
        lambda: schema({"anyOf": [{"enum": list(range(1_000))}] * (MAX_ALL_ENUM_ENTRIES // 1_000 + 1)}),
        "11,000 entries together",
    ),
    "remote": (lambda: schema({"items": {"$ref": "https://example.com/a"}}), "'https://example.com/a'"),
    "local file": (lambda: schema({"$ref": "file:///etc/passwd"}), "only references inside"),
    "own rules": (lambda: schema({"x-guidance": {"lenient": True}}), "x-guidance"),
    "surrogate": (lambda: schema({"properties": {"\ud800": {}}}), "U+D800"),
    "nan": (lambda: schema({"const": float("nan")}), "not JSON"),
    "not JSON": (lambda: schema({"const": {1, 2}}), "not JSON"),
    "huge number": (lambda: schema({"const": 10**5_000}), "not JSON"),
    "long expression": (lambda: regex("a" * 8_193), "at most 8,192"),
    "no expression": (lambda: regex(""), "is empty"),
    "bytes": (lambda: regex(b"a"), "of type bytes"),  # type: ignore[arg-type]
    "long grammar": (lambda: grammar("start: " + "a" * 65_536), "at most 65,536"),
    "half a letter": (lambda: grammar('start: "\udfff"'), "U+DFFF"),
    "one text": (lambda: choice("yes"), "a list of strings"),
    "numbers": (lambda: choice([1, 2]), "a list of strings"),  # type: ignore[list-item]
    "no choice": (lambda: choice([]), "0 entries"),
    "many choices": (lambda: choice(["a"] * (MAX_CHOICES + 1)), "1,001 entries"),
}


def shared_levels(levels: int) -> dict[str, Any]:
    """A schema of 2 ** levels parts that takes no memory, as only Python code can make one."""
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"if": value, "then": value}
    return value


def endless() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["items"] = value
    return value


@pytest.mark.parametrize("name", BAD_SPECS)
def test_a_form_beyond_the_limits_is_refused_at_once(name: str) -> None:
    make, expected = BAD_SPECS[name]
    start = time.perf_counter()
    assert expected in refused(make)
    assert time.perf_counter() - start < 1.0


def test_equal_forms_are_one_key_and_the_order_of_properties_counts() -> None:
    a, b = {"a": {}, "b": {}}, {"b": {}, "a": {}}
    assert schema({"properties": a}) == schema(json.loads(json.dumps({"properties": a})))
    assert schema({"properties": a}) != schema({"properties": b})
    assert len({regex("a"), regex("a"), grammar("a"), choice(["a"])}) == 3


# What llguidance refuses, or cannot do within the limits: each is a UsageError of which a part is given.
REFUSED: dict[str, tuple[Callable[[], ConstraintSpec], str]] = {
    "unclosed": (lambda: regex("((("), "unclosed group"),
    "back reference": (lambda: regex(r"(a)\1"), "backreferences"),
    "deep expression": (lambda: regex("(" * 2_000 + "a" + ")" * 2_000), "nested"),
    "repeats of repeats": (lambda: regex("((a{1,1000}){1,1000}){1,1000}"), "too complex"),
    "nothing matches": (lambda: regex(r"[^\s\S]"), "no text satisfies it"),
    "type": (lambda: schema({"type": "strng"}), "strng"),
    "unknown format": (lambda: schema({"type": "string", "format": "int32"}), "int32"),
    "keyword": (lambda: schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    "overlapping oneOf": (lambda: schema({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}), "anyOf"),
    "empty enum": (lambda: schema({"enum": []}), "Unsatisfiable"),
    "missing reference": (lambda: schema({"$ref": "#/$defs/none"}), "does not exist"),
    "reference to itself": (lambda: schema({"$ref": "#"}), "no text satisfies it"),
    "pattern bomb": (
        lambda: schema({"patternProperties": {f"^{i}a(x|y)*$": {"type": "string"} for i in range(1_200)}}),
        "takes more than 2 s",
    ),
    "multiples": (lambda: schema({"prefixItems": [{"type": "integer", "multipleOf": 999_999_937}]}), "too complex"),
    "chain of references": (lambda: schema(chain(lambda ref: {"allOf": [ref]}, 1_300)), "too deeply nested"),
    "chain of items": (lambda: schema(chain(lambda ref: {"items": ref, "type": "array"}, 1_000)), "too deeply nested"),
    "unknown rule": (lambda: grammar("start: foo"), "foo"),
    "control token": (lambda: grammar('start: "a" <|im_start|>'), "im_start"),
    "control token by number": (lambda: grammar(f"start: <[{END}-{START}]>"), "cannot be used"),
    "chain of rules": (lambda: grammar(links("a{}: a{}", 4_000, 'a4000: "a"')), "too deeply nested"),
    "chain of terminals": (lambda: grammar(links("A{}: A{}", 4_000, 'A4000: "a"')), "too deeply nested"),
    "growing terminals": (
        lambda: grammar(links('A{0}: (A{1} "{0}" | "{0}") & /.*/', 1_400, 'A1400: "a"')),
        "cannot be used",
    ),
    "ambiguous": (lambda: grammar('start: x{1,1000}\nx: y{1,1000}\ny: "a"{1,1000}'), "too complex"),
    "list of grammars": (lambda: grammar('{"grammars": [{"json_schema": {}}], "max_tokens": 1}'), "cannot be used"),
    "zero bytes": (lambda: grammar("\x00\x1b[31m"), "lexer error"),
}


def links(rule: str, count: int, last: str) -> str:
    first = rule[: rule.index("{")] + "0"
    return "\n".join([f"start: {first}", *(rule.format(i, i + 1) for i in range(count)), last])


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_cannot_be_compiled_is_refused_soon(name: str, compiler: Compiler) -> None:
    make, expected = REFUSED[name]
    spec = make()
    start = time.perf_counter()
    assert expected in refused(lambda: compiler.compile(spec))
    assert time.perf_counter() - start < PATIENCE_S


# Forms that look as bad, but work: some random steps of each.
WORKING: dict[str, Callable[[], ConstraintSpec]] = {
    "repeats": lambda: regex("(a{1,1000}){1,1000}"),
    "memory": lambda: regex("(a|b)*a(a|b){2000}"),
    "any letter": lambda: regex(r"(\p{L}|\p{N}){1,5000}"),
    "empty text": lambda: regex("()"),
    "slashes": lambda: regex("//x/*"),
    "many items": lambda: schema({"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
    "long string": lambda: schema({"type": "string", "minLength": 10**9}),
    "depth": lambda: schema(nested({"type": "string"}, MAX_DEPTH - 1)),
    "recursion": lambda: schema({"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "null"}]}),
    "doubled references": lambda: schema(chain(lambda ref: {"anyOf": [ref, ref]}, 40)),
    "doubled properties": lambda: schema(chain(lambda ref: {"properties": {"a": ref, "b": ref}}, 40)),
    "full enum": lambda: schema({"enum": [f"value {i}" for i in range(MAX_ENUM_ENTRIES)]}),
    "full choice": lambda: choice([f"{i:04d}" * 15 for i in range(MAX_CHOICES)]),
    "many required": lambda: schema({"properties": {f"k{i}": {} for i in range(999)}, "required": [f"k{i}" for i in range(999)]}),
    "any token": lambda: grammar("start: <[*]>+"),
    "left recursion": lambda: grammar('start: start "a" | "a"'),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKING)
def test_a_form_that_looks_hostile_works(name: str, compiler: Compiler) -> None:
    start = time.perf_counter()
    constraint = compiler.compile(WORKING[name]())
    chance = np.random.default_rng(1)
    for _ in range(60):
        if constraint.done:
            break
        text_V = constraint.allowed()
        text_V[END] = False
        assert not text_V[END:].any()
        constraint.accept(int(chance.choice(np.flatnonzero(text_V))))
    assert time.perf_counter() - start < PATIENCE_S


def test_a_step_of_an_ambiguous_grammar_is_bounded(compiler: Compiler) -> None:
    constraint = compiler.compile(grammar('start: start start | "a" | '))
    worst_s = 0.0
    with pytest.raises(KiloqError, match="cannot follow the grammar"):
        while True:
            start = time.perf_counter()
            constraint.allowed()
            constraint.accept(ord("a"))
            worst_s = max(worst_s, time.perf_counter() - start)
    assert worst_s < 1.0  # 0.07 on an idle core; over a second with llguidance's own limit


def test_the_cache_keeps_the_last_used(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(bytes_tokenizer(), (END,), ROWS, cache_entries=2)
    specs = [choice([letter]) for letter in "abc"]
    compiler.compile(specs[0])
    compiler.compile(specs[1])
    compiler.compile(specs[0])
    compiler.compile(specs[2])
    assert list(compiler._cache) == [specs[0], specs[2]]
    monkeypatch.setattr(constrain, "CACHE_BYTES", 2 * len(specs[0].text) - 1)
    compiler.compile(specs[1])
    assert list(compiler._cache) == [specs[1]]


def test_eight_threads_compile_at_once(compiler: Compiler) -> None:
    written: dict[int, str] = {}

    def work(number: int) -> None:
        for constraint in (compiler.compile(regex(f"thread {number}")) for _ in range(2)):
            ids = []
            while not constraint.done:
                ids.append(int(np.flatnonzero(constraint.allowed())[0]))
                constraint.accept(ids[-1])
            written[number] = bytes(ids).decode()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == {number: f"thread {number}" for number in range(8)}


def test_threads_share_one_form(compiler: Compiler) -> None:
    spec = schema({"type": "array", "items": {"type": "string", "pattern": "^(ab|c)*$"}, "minItems": 20})
    failures: list[Exception] = []

    def work(seed: int) -> None:
        chance = np.random.default_rng(seed)
        try:
            constraint = compiler.compile(spec)
            for _ in range(80):
                constraint.accept(int(chance.choice(np.flatnonzero(constraint.allowed()))))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not failures and not any(thread.is_alive() for thread in threads)


def test_a_compiler_that_is_busy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrain, "MAX_TRIALS", 1)
    monkeypatch.setattr(constrain, "TRIAL_PATIENCE", 0.01)
    compiler = Compiler(bytes_tokenizer(), (END,), ROWS)
    compiler._trials.acquire()
    with pytest.raises(BusyError, match="ask again"):
        compiler.compile(regex("a"))
    compiler._trials.release()
    assert compiler.compile(regex("a")).allowed()[ord("a")]
