"""Word wrapping on a model of a terminal: nothing lost, no word split that fits, any cut of the text alike."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcwidth

from kiloq.core.wrap import WordWrap, for_stream


class Terminal:
    """Cells of a screen of some width: text, newline, cursor left, erase to the end of the line."""

    def __init__(self, columns: int) -> None:
        self.columns, self.rows, self.column = columns, [""], 0

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[\d*[A-Z]|.", text, re.S):
            if part == "\n":
                self.rows.append("")
                self.column = 0
            elif part.endswith("D") and part.startswith("\x1b"):
                self.column -= int(part[2:-1])
                assert self.column >= 0
            elif part == "\x1b[K":
                self.rows[-1] = self.rows[-1][: self.column]
            else:
                cells = 8 - self.column % 8 if part == "\t" else wcwidth(part)
                self.rows[-1] += part if cells < 2 else part + "\0" * (cells - 1)  # one entry a cell
                self.column += cells
                assert self.column < self.columns, "the last cell stays free"

    def lines(self) -> list[str]:
        return [row.replace("\0", "") for row in self.rows]


def shown(text: str, columns: int, cuts: list[int] | None = None) -> list[str]:
    terminal, wrap = Terminal(columns), WordWrap(lambda: columns)
    while text:
        size = cuts.pop(0) if cuts else len(text)
        terminal.write(wrap.push(text[:size]))
        text = text[size:]
    return terminal.lines()


def test_words_go_whole_to_the_next_line() -> None:
    assert shown("the quick brown fox", 12) == ["the quick ", "brown fox"]
    assert shown("one two three", 9, [1] * 13) == ["one two ", "three"]
    assert shown("well-known words", 9) == ["well-", "known ", "words"]


def test_chinese_breaks_anywhere_and_long_words_break_hard() -> None:
    assert shown("世界" * 4, 9) == ["世界世界", "世界世界"]
    assert shown("a" * 20, 10) == ["a" * 9, "a" * 9, "aa"]
    assert shown("x 世界世界y", 9) == ["x 世界世", "界y"]


def test_newlines_and_blanks_at_the_edge() -> None:
    assert shown("ab\n\ncd", 20) == ["ab", "", "cd"]
    assert shown("12345678 90", 9) == ["12345678", "90"]
    assert shown("a\tb\tc", 20) == ["a\tb\tc"]


@given(st.text("ab 世-\n", max_size=120), st.integers(9, 30), st.lists(st.integers(1, 5), max_size=60))
def test_nothing_is_lost_and_pieces_do_not_matter(text: str, columns: int, cuts: list[int]) -> None:
    whole = shown(text, columns)
    assert shown(text, columns, cuts) == whole
    assert re.sub(r"\s", "", "".join(whole)) == re.sub(r"\s", "", text)


def test_files_get_the_text_as_it_is(tmp_path: pytest.TempPathFactory) -> None:
    with (tmp_path / "out").open("w") as stream:
        assert for_stream(stream)("a\x1b[31m" * 50) == "a\x1b[31m" * 50
