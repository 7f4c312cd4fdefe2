"""What a parser of streamed text must hold back: whitespace that may turn out not to count, and the start of a tag.

Held pieces are kept in a list and joined once, so a megabyte that arrives in single characters costs a megabyte of
work.
"""

from __future__ import annotations

from collections.abc import Sequence


class TrailingSpace:
    """Feeds on text, gives it back up to its last visible character; the whitespace after that is held."""

    def __init__(self) -> None:
        self._held: list[str] = []

    def push(self, text: str) -> str:
        """What may be shown: nothing, or the whitespace held so far and `text` without the whitespace at its end."""
        body = text.rstrip()
        if not body:
            self._held.append(text)
            return ""
        shown = "".join([*self._held, body])
        self._held = [text[len(body) :]]
        return shown

    def flush(self) -> str:
        """The whitespace that was held, which is then no longer held."""
        held, self._held = "".join(self._held), []
        return held


def held_from(text: str, at: int, tags: Sequence[str]) -> int:
    """Where in `text[at:]` a tail begins that may be the start of a tag; `len(text)` where there is none.

    All tags begin with the same character, which occurs in them only there, and no whole tag is in `text[at:]`.
    """
    reach = max(map(len, tags)) - 1
    place = text.rfind(tags[0][0], max(at, len(text) - reach))
    if place >= 0 and any(tag.startswith(text[place:]) for tag in tags):
        return place
    return len(text)
