"""The character model: its probabilities against Kneser-Ney as the papers write it, what it thinks of real text, its files."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.naive_kneser_ney import smoothed
from support import shared

from kiloq.core.errors import FormatError, KiloqError, UsageError
from kiloq.core.safetensors import SafetensorsFile, write_safetensors
from kiloq.prepare.command_models import train_perplexity_command
from kiloq.prepare.documents import batch_of
from kiloq.prepare.models import ngrams, scorer
from kiloq.prepare.models.ngrams import FIRST, UNKNOWN
from kiloq.prepare.models.perplexity import Perplexity
from kiloq.prepare.models.scorer import (
    CODES,
    Scorer,
    estimate_scorer,
    load_scorer,
    normal,
    save_scorer,
    symbol_table,
    utf8_bytes,
    vocabulary,
)  # fmt: skip
from kiloq.tokenize.texts import read_texts

from .samples import CHINESE, ENGLISH, run

ALL = 1 << 20  # n-grams: nothing is cut
LETTERS = np.array([ord(letter) for letter in "abcd"], np.uint32)
LEARNED = st.lists(st.text(st.sampled_from("abcdx"), min_size=1, max_size=12), min_size=1, max_size=8)


def symbols_of(text: str) -> list[int]:
    return symbol_table(LETTERS)[[ord(letter) for letter in text]].tolist() if text else []


def chances(model: Scorer, text: str) -> list[float]:
    """p of each symbol of `text` after those before it; of any character outside the vocabulary together."""
    (logs,) = model.log_probabilities([symbol_table(LETTERS)[[ord(letter) for letter in text]]])
    rest = CODES - len(LETTERS)
    return [math.exp(log) * (1 if letter in "abcd" else rest) for log, letter in zip(logs, text, strict=True)]


@settings(deadline=None)
@given(
    LEARNED,
    st.text(st.sampled_from("abcdx"), min_size=1, max_size=10),
    st.integers(1, 5),
    st.sampled_from([ALL, 0, 3, 9, 20]),
)
def test_probabilities_are_those_of_the_papers(learned: list[str], text: str, order: int, most: int) -> None:
    model = estimate_scorer(learned, LETTERS, order, most)
    oracle = smoothed([symbols_of(one) for one in learned], order, FIRST + len(LETTERS), most)
    row = [0, *symbols_of(text)]
    expected = [oracle(tuple(row[:at]), row[at]) for at in range(1, len(row))]
    # Log-probabilities are kept in 32 bits.
    assert chances(model, text) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None)
@given(LEARNED, st.text(st.sampled_from("abcdx"), max_size=6), st.integers(1, 5), st.sampled_from([ALL, 5]))
def test_probabilities_sum_to_one(learned: list[str], context: str, order: int, most: int) -> None:
    model = estimate_scorer(learned, LETTERS, order, most)
    assert sum(chances(model, context + letter)[-1] for letter in "abcdx") == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("most", [ALL, 2_000])
def test_real_text_counted_in_parts_is_the_papers_model(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    texts = (ENGLISH + CHINESE).split("\n") * 2 + ENGLISH.split(". ")
    characters = vocabulary(texts, 60)
    whole = estimate_scorer(texts, characters, 4, most)
    monkeypatch.setattr(ngrams, "CHUNK", 300)
    parts = estimate_scorer(texts, characters, 4, most)
    for name in ("logs", "backoffs", "first_logs", "first_backoffs"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    oracle = smoothed(
        [symbol_table(characters)[normal(text)].tolist() for text in texts], 4, FIRST + len(characters), most
    )
    for text in (ENGLISH[:300], CHINESE[:200], "zzqx 北塔"):
        symbols = symbol_table(characters)[normal(text)]
        row = [0, *symbols.tolist()]
        (logs,) = whole.log_probabilities([symbols])
        logs = logs + (symbols == UNKNOWN) * math.log(CODES - len(characters))
        expected = [math.log(oracle(tuple(row[:at]), row[at])) for at in range(1, len(row))]
        assert logs.tolist() == pytest.approx(expected, abs=1e-5)


def test_counting_in_little_memory_still_gives_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """N-grams seen once are given up now and then: what is left must be a model all the same."""
    monkeypatch.setattr(ngrams, "CHUNK", 200)
    monkeypatch.setattr(ngrams, "HELD_GRAMS", 150)
    texts = ENGLISH.split("\n") * 3
    characters = vocabulary(texts, 1_000)
    model = estimate_scorer(texts, characters, 5, ALL)
    table = symbol_table(characters)
    for context in ("the ", "on the nor", "xx"):
        after = [
            np.append(table[normal(context)], symbol).astype(np.uint16) for symbol in range(1, FIRST + len(characters))
        ]
        logs = np.array([found[-1] for found in model.log_probabilities(after)])
        logs[0] += math.log(CODES - len(characters))
        assert np.exp(logs).sum() == pytest.approx(1, rel=1e-5)
    assert int((model.table.slots != ngrams.EMPTY).sum()) < 5 * 300


@pytest.mark.parametrize(
    ("text", "expected"),
    [("  The\n\n LAMP\t", "the lamp"), ("In 1984, ３٤ ", "in 0000, 00"), ("", ""), (" \n", ""), ("北 方", "北 方")],
)
def test_texts_are_evened_out(text: str, expected: str) -> None:
    assert "".join(map(chr, normal(text))) == expected
    assert utf8_bytes(normal(text)) == len(expected.encode())


def learned_prose() -> tuple[Scorer, list[str], list[str]]:
    """A small model of C4 and Chinese Wikipedia, and pages of both that it has not seen."""
    pages = [text.text for text in read_texts([shared("data", "pretrain_text", "c4_demo.jsonl.zst")])]
    zstandard = pytest.importorskip("zstandard")
    with shared("data", "zh_wikipedia", "cmrc2018_dev.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        chinese = [json.loads(line)["context"] for line in lines]
    texts = pages[:200] + chinese[:500]
    return estimate_scorer(texts, vocabulary(texts, 20_000), 5, ALL), pages[200:], chinese[500:]


def test_prose_is_told_from_what_is_none() -> None:
    model, english, chinese = learned_prose()
    order = np.random.default_rng(0)
    bad = {
        "shuffled letters": ["".join(order.permutation(list(page))) for page in english],
        "wrong decoding": [page.encode().decode("latin-1") for page in chinese],
        "shuffled Chinese": ["".join(order.permutation(list(page))) for page in chinese],
    }
    good = [value for value in model.perplexities(english + chinese) if value is not None]
    assert 3 < np.median(good) < 10
    assert np.percentile(good, 5) < np.median(good) < np.percentile(good, 95)
    for name, pages in bad.items():
        assert np.mean(np.array(model.perplexities(pages)) > np.percentile(good, 95)) > 0.9, name


def saved(tmp_path: Path) -> str:
    texts = [*ENGLISH.split("\n"), *CHINESE.split("\n")] * 2
    model = estimate_scorer(texts, vocabulary(texts, 1_000), 4, ALL)
    points = np.linspace(2, 102, scorer.PERCENTILES).astype(np.float32)
    path = tmp_path / "model.safetensors"
    save_scorer(Scorer(**{**vars(model), "percentiles": points}), path, {"from": "samples"})
    return str(path)


def test_limits_drop_and_say_why(tmp_path: Path) -> None:
    path = saved(tmp_path)
    noise = "qzx wvk jjq " * 20
    result = run(Perplexity(path=path, most=40.0), ENGLISH, noise, "")
    low, high, none = result.batch.column("perplexity").to_pylist()
    assert (low < 3, high > 40, none) == (True, True, None)
    assert result.reasons == [None, f"perplexity: of a byte: {load_scorer(path).perplexities([noise])[0]:.6g}, at most 40 may be", None]  # fmt: skip
    least = run(Perplexity(path=path, least=5.0, column="surprise"), ENGLISH, noise)
    assert "surprise" in least.batch.schema.names
    assert [reason is None for reason in least.reasons] == [False, True]
    for percentile, kept in ((10.0, True), (0.0, False)):  # perplexities of 12 and of 2
        step = Perplexity(path=path, most_percentile=percentile)
        assert (run(step, ENGLISH[:200] + "!").reasons[0] is None) == kept
    assert run(Perplexity(path=path), ENGLISH, noise).reasons == [None, None]


def test_rows_of_other_languages_are_passed_over(tmp_path: Path) -> None:
    step = Perplexity(path=saved(tmp_path), languages=("en",), most=0.0)
    rows = [{"text": ENGLISH, "language": code} for code in ("zh", "en", None)]
    result = step.apply(batch_of(rows))
    assert [reason is None for reason in result.reasons] == [True, False, True]
    assert [value is None for value in result.batch.column("perplexity").to_pylist()] == [True, False, True]


def test_texts_do_not_touch_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_scorer(saved(tmp_path))
    texts = [ENGLISH, "", CHINESE, "x", ENGLISH[::-1], CHINESE * 3]
    together = model.perplexities(texts)
    assert together == [model.perplexities([text])[0] for text in texts]
    monkeypatch.setattr(scorer, "PART_CHARS", 400)
    in_parts = model.perplexities(texts)
    assert [value for value in in_parts if value] == pytest.approx([value for value in together if value], rel=0.05)
    assert in_parts != together  # parts begin afresh
    assert in_parts == [model.perplexities([text])[0] for text in texts]


@pytest.mark.parametrize(
    "text", ["a" * 1_000_000, " " * 1_000_000, "\U0001f600" * 500_000, "\u0301" * 500_000, "\ud800\udfff", "\x00"]
)
def test_hostile_text_is_scored(tmp_path: Path, text: str) -> None:
    (value,) = load_scorer(saved(tmp_path)).perplexities([text])
    assert value is None or 1 <= value <= scorer.MAX_PERPLEXITY


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("slots", np.zeros(8, np.uint64)),
        ("slots", None),
        ("logs", np.zeros(3, np.float32)),
        ("logs", "nan"),
        ("first_logs", np.zeros(1, np.float32)),
        ("characters", np.array([0x110000], np.uint32)),
        ("characters", np.zeros(70_000, np.uint32)),
        ("percentiles", np.zeros(5, np.float32)),
        ("order", "13"),
        ("bits", "41"),
        ("kind", "kiloq classifier 1"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path: Path, name: str, array: Any) -> None:
    path = Path(saved(tmp_path))
    file = SafetensorsFile(path)
    arrays = {one: file.array(one).copy() for one in file.names()}
    metadata = dict(file.metadata)
    if name in metadata:
        metadata[name] = array
    elif array is None:
        del arrays[name]
    else:
        arrays[name] = arrays[name] * np.float32(np.nan) if isinstance(array, str) else array
    write_safetensors(path, arrays, metadata)
    with pytest.raises(FormatError, match=str(path)):
        load_scorer(str(path))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "there is no model"),
        ({"path": "m", "most_percentile": 101.0}, "most_percentile is 101.0"),
        ({"path": "m", "most": -1.0}, "most is -1.0"),
        ({"path": "m", "column": "meta"}, "column is 'meta'"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Perplexity(**fields)


def test_the_command_trains_twice_the_same(tmp_path: Path) -> None:
    rows = tmp_path / "good.jsonl"
    lines = [f"{line} {n}" for n in range(20) for line in ENGLISH.split("\n")]
    rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    outputs = []
    for out in ("one", "two"):
        done = CliRunner().invoke(train_perplexity_command, [str(rows), "-o", str(tmp_path / out), "--order", "4", *(["--json"] if out == "one" else [])])  # fmt: skip
        assert done.exit_code == 0, done.output
        outputs.append(done.output)
    report = json.loads(outputs[0])
    assert report["learned"] + report["held_out"] == len(lines)
    assert report["held_out"] > 0
    assert "of 100" in outputs[1]
    one, two = ((tmp_path / name).read_bytes() for name in ("one", "two"))
    assert one.replace(b"one", b"two") == two
    (reason,) = run(Perplexity(path=str(tmp_path / "one"), most_percentile=95.0), CHINESE).reasons
    assert f"at most {report['percentiles']['95']:.6g} may be" in str(reason)


def test_a_model_without_percentiles_says_so(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("only one text")
    out = str(tmp_path / "m")
    done = CliRunner().invoke(train_perplexity_command, [str(tmp_path / "one.txt"), "-o", out])
    assert done.exit_code == 0, done.output
    assert "no text was held out" in done.stderr
    with pytest.raises(UsageError, match="has no percentiles"):
        run(Perplexity(path=out, most_percentile=50.0), "a")
    (tmp_path / "empty.txt").write_text("")
    done = CliRunner().invoke(train_perplexity_command, [str(tmp_path / "empty.txt"), "-o", out])
    assert isinstance(done.exception, KiloqError)
