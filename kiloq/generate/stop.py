"""Stop strings in a stream of text: what may be shown is shown at once, what may be the start of a stop is held back."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Feeds on text pieces, gives back what is safe to show; nothing of a stop string ever comes out.

    The stop that is complete first wins (the longer one of two that end together), however the text is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Text that is certain not to belong to a stop string; empty for ever once `stopped`."""
        if self.stopped:
            return ""
        self._held += piece
        found = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
            return shown
        safe = len(self._held) - self._longest_start()
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        shown, self._held = ("" if self.stopped else self._held), ""
        return shown

    def _longest_start(self) -> int:
        """Length of the longest tail of the held text with which some stop string begins."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
