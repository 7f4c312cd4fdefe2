"""Prompt-lookup speculation: what followed the last few tokens earlier in the text is guessed to follow them again.

Guesses cost no model: they are fed behind the newest token in the same call, and each is kept only if the sampler,
with its own uniform number, draws that very token from the logits before it. The answer is therefore the same to the
token as without guessing, greedy or sampled; only the time differs. Copying (edits of code, quotes, extraction) gains;
elsewhere the guesser falls silent: after a miss it lets twice as many chances pass as before.

Source: prompt lookup decoding (A. Saxena, 2023); verification by equal draws instead of rejection sampling is ours.
"""

from __future__ import annotations

from collections.abc import Iterable

MATCH = 3  # ours: tokens that must repeat; two find a guess in nearly every text and seldom a right one
FIRST_GUESS = 3  # tokens; doubled when all were right
MOST_SKIPPED = 64  # chances that pass unused after misses in a row


class PromptLookup:
    """Guesses for one answer. `push` every token of prompt and answer in order."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # the last MATCH tokens -> where what followed them begins
        self._length = FIRST_GUESS
        self._misses = 0
        self._skip = 0
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """The text goes on with `token`."""
        if len(self._tokens) >= MATCH:
            self._places[tuple(self._tokens[-MATCH:])] = len(self._tokens)
        self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """At most `most` tokens that may come next; often none."""
        begin = self._places.get(tuple(self._tokens[-MATCH:]))
        if begin is None or most < 1:
            return []
        if self._skip:
            self._skip -= 1
            return []
        period = len(self._tokens) - begin  # a short loop goes on as a loop
        return [self._tokens[begin + i % period] for i in range(min(self._length, most))]

    def learn(self, guessed: int, right: int) -> None:
        """Of the last guess, so many tokens were right."""
        if right == guessed:
            self._length, self._misses = 2 * self._length, 0
        elif 2 * right >= guessed:
            self._length, self._misses = max(FIRST_GUESS, right), 0
        else:
            self._length = FIRST_GUESS
            self._misses += 1
            self._skip = min(2**self._misses, MOST_SKIPPED)
