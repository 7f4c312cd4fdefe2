"""The compression report: figures against counting by hand and against those measured before, and its page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from support import qwen_vocabulary, shared

from kiloq.core.errors import FormatError, KiloqError, UsageError
from kiloq.core.page import cell, page
from kiloq.tokenize.command import command
from kiloq.tokenize.compression import measure, report_page
from kiloq.tokenize.texts import Text
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.tokenize.vocabulary import BYTES, qwen

# Bytes per token of Qwen's vocabulary on the Universal Declaration of Human Rights, measured with another program on
# another copy of the texts (lines without their indentation), which is why a per cent is allowed.
QWEN_ON_UDHR = {
    "eng": 5.23, "cmn_hans": 4.74, "tha": 5.25, "heb": 4.66, "arb": 4.95, "kor": 3.89, "vie": 5.00, "jpn": 4.22,
    "tur": 3.22, "ind": 3.28, "pol": 3.07, "rus": 6.22, "nld": 3.39, "por_BR": 3.94, "ita": 3.62, "deu": 3.69,
    "spa": 4.11, "fra": 4.00,
}  # fmt: skip


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, ["report", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def bytes_only() -> Tokenizer:
    return Tokenizer(qwen({byte: rank for rank, byte in enumerate(BYTES)}))


@pytest.fixture
def vocabulary(bytes_only: Tokenizer, tmp_path: Path) -> Path:
    bytes_only.save(tmp_path / "bytes")
    return tmp_path / "bytes"


def test_qwen_compresses_as_measured_elsewhere() -> None:
    pytest.importorskip("zstandard")
    texts = shared("data", "udhr", "udhr2.jsonl.zst")
    report = json.loads(run(texts, "--by", "id", "--strip", "-t", f"q={qwen_vocabulary()}", "--json"))
    assert len(report["languages"]) + report["empty_documents"] == 388
    for language, wanted in QWEN_ON_UDHR.items():
        found = report["languages"][language]["tokenizers"]["q"]["bytes_per_token"]
        assert found == pytest.approx(wanted, rel=0.01), language


def test_figures(bytes_only: Tokenizer, qwen: Tokenizer) -> None:
    texts = [Text("en", " the cat\n\n"), Text("zh", "猫e\u0301"), Text("en", "!"), Text("en", "", continues=True)]
    found = measure(texts, {"bytes": bytes_only, "qwen": qwen}, "bytes")
    english, chinese = found.languages["en"], found.languages["zh"]
    assert (english.documents, english.bytes, english.characters, english.tokens["bytes"]) == (2, 11, 11, 11)
    assert (chinese.documents, chinese.bytes, chinese.characters) == (1, 5, 2), "characters are those of the NFC form"
    assert english.tokens["qwen"] == len(qwen.encode(" the cat\n\n")) + 1
    assert found.tokens_per_character("zh", "bytes") == 2.5 and found.bytes_per_token("zh", "bytes") == 1
    product = found.relative("en", "qwen") * found.relative("zh", "qwen")
    assert found.mean_relative("qwen") == pytest.approx(product**0.5) and found.mean_relative("bytes") == 1
    assert measure(texts[:1], {"bytes": bytes_only}, "bytes", strip=True).languages["en"].bytes == len("the cat")


def test_table_and_page(vocabulary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "zh").mkdir(parents=True)
    (folder / "en.txt").write_text("the cat", encoding="utf-8")
    (folder / "zh" / "one.txt").write_text("猫", encoding="utf-8")
    out = tmp_path / "report.html"
    table = run(folder, "-t", f"A={vocabulary}", "-t", f"B={vocabulary}", "--baseline", "B", "-o", out)
    head, english, chinese, mean = table.splitlines()
    assert head.split()[:3] == ["bytes", "A", "bytes/token"] and head.split()[-2:] == ["B", "relative"]
    assert english.split() == ["en", "7", "1.00", "1.00", "1.00", "1.00", "1.00", "1.00"]
    assert chinese.split()[:4] == ["zh", "3", "1.00", "3.00"] and mean.split() == ["geometric", "mean", "1.00", "1.00"]
    assert out.read_text(encoding="utf-8").count("<rect") == 2 + 4  # a key and a bar for each


def test_names_from_strangers_are_text_on_the_page(bytes_only: Tokenizer) -> None:
    evil = "<script>&\"'"
    html = report_page(measure([Text(evil, "x")], {evil: bytes_only}, evil))
    assert "<script" not in html and "&lt;script&gt;" in html
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(html)
    assert {"svg", "table", "title"} <= set(tags) and "http" not in html
    assert "<b>" not in page("<b>", "") and cell("<b>", number=True) == "<td class=n>&lt;b&gt;</td>"


def test_wrong_use(vocabulary: Path, tmp_path: Path) -> None:
    text, empty, rows = tmp_path / "en.txt", tmp_path / "empty.txt", tmp_path / "x.jsonl"
    text.write_text("x")
    empty.write_text("")
    rows.write_text('{"text": "x"}\n')
    for arguments, said in (
        ((text, "-t", vocabulary, "--baseline", "x"), "--baseline 'x' is none of"),
        ((text, "-t", vocabulary, "-t", vocabulary), "a name of its own"),
        ((text, "-t", "a="), "a name of its own"),
        ((empty, "-t", vocabulary), "no text to measure"),
    ):
        with pytest.raises(UsageError, match=said):
            run(*arguments)
    for arguments, said in (
        ((rows, "-t", vocabulary, "--by", "id"), "no field 'id'"),
        ((text, "-t", vocabulary, "-o", tmp_path / "no" / "x.html"), "no folder"),
        ((text, "-t", tmp_path / "none.json"), "none.json"),
    ):
        with pytest.raises(KiloqError, match=said):
            run(*arguments)


def test_a_tokenizer_that_only_hugging_face_reads(tmp_path: Path) -> None:
    """Word pieces, which kiloq has no reader for; and a file that nobody reads keeps kiloq's sentence."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "cat": 1, "[UNK]": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "words.json"))
    (tmp_path / "a.txt").write_text("the cat sat")
    report = json.loads(run(tmp_path / "a.txt", "-t", f"words={tmp_path / 'words.json'}", "--json"))
    assert report["languages"]["a"]["tokenizers"]["words"]["tokens"] == 3
    (tmp_path / "bad.json").write_text('{"model": {"type": "Nothing"}}')
    with pytest.raises(FormatError, match=r"bad\.json"):
        run(tmp_path / "a.txt", "-t", tmp_path / "bad.json")
