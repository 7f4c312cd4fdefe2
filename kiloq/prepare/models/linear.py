"""A linear classifier of texts over hashed n-grams: what is counted of a text, and the training.

Features are runs of one and two words and of four characters, hashed into 2**bits buckets; in scripts without spaces
a character is a word (kiloq.prepare.models.units). Counts enter by their square root and each text has length one,
which keeps long texts from being surer than short ones. The weights are those of logistic regression with L2, trained
by AdaGrad (Duchi et al. 2011) over a shuffle in bounded memory; the two sides count the same, however many texts each
has, so that 0.5 is the middle. Sources: Joulin et al. 2017 (fastText: hashed word n-grams, a linear model); Brown et
al. 2020, appendix A (a filter of hashed words in logistic regression).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kiloq.core.hashing import mix
from kiloq.prepare.models.units import Runs, folded, units_of

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Features = tuple[npt.NDArray[np.uint32], F32]  # buckets, ascending, and the value of each

PIECE_CHARS = 20_000  # a longer text is judged in pieces of this size, and learned from by its first. Ours
FIXED = 1 << 40  # of sums in whole numbers, which have no order: a logit below 2**22 is exact to 1e-12
HELD_FEATURES = 16 << 20  # of the shuffle: 128 MiB, twice while it is filled again. Ours
BATCH = 32  # texts for one step of AdaGrad. Ours

Read = Callable[[], Iterable[tuple[str, bool]]]  # the texts once more, and whether each is a good one


@dataclass(frozen=True)
class Shape:
    """What is counted of a text. A model carries it, so that applying counts what training counted."""

    bits: int = 18  # 2**bits buckets, 1 MiB of weights. Ours: on 667 comments 16 to 20 bits had areas of .942 to .945
    words: int = 2  # longest run of words, fastText's wordNgrams for classifying
    chars: int = 4  # characters of a run; 0: none. Ours: on the same 3 had an area of .937, 5 one of .942


@dataclass(frozen=True)
class Linear:
    """A trained model: weights [2**bits] and bias, both of the log-odds that a text is good."""

    shape: Shape
    weights: F32
    bias: float

    def score(self, text: str) -> float:
        """The probability that `text` is of the good side; pieces of a long text count by their length."""
        total = length = 0
        for piece in pieces_of(text):
            buckets, values = features(piece, self.shape)
            products = self.weights[buckets].astype(np.float64) * values
            total += int(np.rint(products * FIXED).astype(np.int64).sum()) * len(piece)
            length += len(piece)
        return sigmoid(total / FIXED / max(1, length) + self.bias)


def pieces_of(text: str) -> Iterator[str]:
    """A text in pieces of at most PIECE_CHARS."""
    for start in range(0, len(text), PIECE_CHARS):
        yield text[start : start + PIECE_CHARS]


def features(text: str, shape: Shape) -> Features:
    """The buckets of a text and their values: square roots of counts, of length one together."""
    codes = folded(text)
    words = Runs(units_of(codes).hashes)
    parts = [words.grams(n) + np.uint64(n) for n in range(1, shape.words + 1)]
    if shape.chars:
        parts.append(Runs(codes).grams(shape.chars))
    hashes = np.concatenate(parts)
    buckets = np.sort((mix(hashes) >> np.uint64(64 - shape.bits)).astype(np.uint32))
    first = np.flatnonzero(np.concatenate([[True], buckets[1:] != buckets[:-1]])) if len(buckets) else np.arange(0)
    counts = np.diff(first, append=len(buckets))
    values = np.sqrt(counts / max(1, len(buckets)))
    return buckets[first], values.astype(np.float32)


def train(
    read: Read, counts: tuple[int, int], shape: Shape, *, epochs: int, rate: float, decay: float, seed: int
) -> Linear:
    """The model of the texts that `read` gives; `counts`: how many of them are bad and good.

    epochs: times that every text is learned from; rate: AdaGrad's step; decay: of the squared weights in the loss.
    """
    weights, squares = np.zeros(1 << shape.bits), np.full(1 << shape.bits, 1e-6)
    bias, bias_square = 0.0, 1e-6
    importance = sum(counts) / (2 * np.maximum(1, np.array(counts)))
    order = np.random.default_rng(seed)
    for batch in _batches(read, shape, epochs, order):
        buckets = np.concatenate([buckets for (buckets, _), _ in batch])
        values = np.concatenate([values for (_, values), _ in batch]).astype(np.float64)
        good = np.array([good for _, good in batch], np.int64)
        row = np.repeat(np.arange(len(batch)), [len(buckets) for (buckets, _), _ in batch])
        logits = np.bincount(row, weights[buckets] * values, minlength=len(batch)) + bias
        errors = (0.5 * (1 + np.tanh(logits / 2)) - good) * importance[good] / len(batch)
        slope = np.bincount(buckets, values * errors[row], minlength=len(weights)) + decay * weights
        squares += slope * slope
        weights -= rate * slope / np.sqrt(squares)
        bias_square += float(errors.sum()) ** 2
        bias -= rate * float(errors.sum()) / math.sqrt(bias_square)
    return Linear(shape, weights.astype(np.float32), float(np.float32(bias)))


def _batches(
    read: Read, shape: Shape, epochs: int, order: np.random.Generator
) -> Iterator[list[tuple[Features, bool]]]:
    """Shuffled batches of all epochs. Texts are read again for each, unless all fit into the shuffle."""
    kept: list[tuple[Features, bool]] | None = None
    for _ in range(epochs):
        for number, block in enumerate([kept] if kept else _blocks(read, shape)):
            kept = block if number == 0 else None
            places = order.permutation(len(block))
            for start in range(0, len(block), BATCH):
                yield [block[place] for place in places[start : start + BATCH]]


def _blocks(read: Read, shape: Shape) -> Iterator[list[tuple[Features, bool]]]:
    """The examples in their order, as many at once as the shuffle may hold."""
    block: list[tuple[Features, bool]] = []
    size = 0
    for text, good in read():
        found = features(text[:PIECE_CHARS], shape)
        block.append((found, good))
        size += len(found[0])
        if size >= HELD_FEATURES:
            yield block
            block, size = [], 0
    if block:
        yield block


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)) for any size of logit."""
    return 0.5 * (1 + math.tanh(logit / 2))


def area(scores: F64, good: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a good text scores above a bad one, ties by half (Fawcett 2006)."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = int(good.sum())
    return float((ranks[good].sum() - n * (n + 1) / 2) / max(1, n * (len(good) - n)))
