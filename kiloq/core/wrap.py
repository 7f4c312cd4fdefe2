"""Words whole at the end of a terminal's line, while the text still streams.

A character is shown as soon as it comes. When the word it belongs to turns out not to fit, the cursor goes back over
the word, wipes it and writes it on the next line. Chinese, Japanese and Korean characters are two cells wide and may
stand at the start of any line. Widths are those of the `wcwidth` package (Unicode Standard Annex 11).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TextIO

from kiloq.core.display import can_draw, is_terminal, neutralise

TAB = 8  # cells between tab stops


class WordWrap:
    """One stream of text onto a terminal; assumes that it starts at the left edge."""

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns  # asked for every piece: people resize their windows
        self._column = 0
        self._word = ""
        self._word_width = 0

    def push(self, text: str) -> str:
        """What to write for the next piece of text."""
        from wcwidth import wcwidth

        limit = max(self._columns() - 1, 8)  # the last cell stays free: terminals differ in what happens there
        out: list[str] = []
        for character in text:
            if character == "\n":
                out.append("\n")
                self._start_line()
                continue
            width = TAB - self._column % TAB if character == "\t" else max(wcwidth(character), 0)
            if width and self._column + width > limit:
                out.append(self._break(character, limit))
                if character in " \t":
                    continue  # a blank at the end of a line has become the line's end
            out.append(character)
            self._take(character, width)
        return "".join(out)

    def _break(self, character: str, limit: int) -> str:
        """Ends the line, and carries an unfinished word that `character` belongs to over to the next one."""
        word, width = self._word, self._word_width
        self._start_line()
        if not word or character in " \t" or 2 * width > limit:
            return "\n"
        self._word, self._word_width, self._column = word, width, width
        return f"\x1b[{width}D\x1b[K\n{word}"

    def _take(self, character: str, width: int) -> None:
        self._column += width
        if character in " \t-" or width == 2:
            self._word, self._word_width = "", 0
        else:
            self._word += character
            self._word_width += width

    def _start_line(self) -> None:
        self._column, self._word, self._word_width = 0, "", 0


def for_stream(stream: TextIO) -> Callable[[str], str]:
    """How model text has to be prepared for `stream`: as it is for files, harmless and wrapped for terminals."""
    if not is_terminal(stream):
        return str
    if not can_draw(stream):
        return neutralise
    wrap = WordWrap(lambda: shutil.get_terminal_size().columns)
    return lambda text: wrap.push(neutralise(text))
