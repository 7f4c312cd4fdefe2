"""Joining the BPE of two neighbouring blocks, so that long texts are merged block by block in linear time.

BPE is local. If the tokens of two neighbouring blocks are each correct, their concatenation is wrong only near the
seam; re-encoding a window over the seam gives the right tokens as soon as the window's first and last token equal
those that stood there before, because a sequence of tokens is the BPE of its text exactly when every two neighbours
are (before the first merge across any boundary, each pair merges as it would alone). Source of that criterion: the
GitHub engineering article on the `bpe` crate (2024); the proof is four lines and the tests compare with naive BPE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

SEAM_TOKENS = 4  # ours: first window on either side of a seam; doubled until it fits

Token = TypeVar("Token")


def join(left: list[Token], right: list[Token], encode: Callable[[list[Token], bool], Sequence[Token] | None]) -> None:
    """Extend `left` in place so that it is the BPE of the text of both.

    encode(tokens, whole): the BPE of the text of `tokens`, which are all there are if `whole`; None if it cannot say
    for a part.
    """
    tokens = SEAM_TOKENS
    while True:
        whole = tokens >= max(len(left), len(right))
        merged = encode(left[-tokens:] + right[:tokens], whole)
        if merged is not None:
            left_fits = tokens >= len(left) or merged[0] == left[-tokens]
            right_fits = tokens >= len(right) or merged[-1] == right[tokens - 1]
            if left_fits and right_fits:
                left[-tokens:] = [*merged, *right[tokens:]]
                return
        tokens *= 2
