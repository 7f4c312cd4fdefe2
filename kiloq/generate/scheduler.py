"""Which answers take part in the next step, with how many tokens, and which blocks of the cache they have.

Answers wait in a queue and run in the order in which they came. One is admitted when the cache has room for all that it
has so far; what of it others have left in the cache is found by the hash of every block's tokens and all before them,
and not computed again. Every running answer that awaits one token gets it in every step; those that still read their
prompt share a budget of tokens, oldest first, so that a long prompt never holds the others up for more than one chunk.
When the cache is full the youngest answer goes back to the head of the queue and leaves its blocks; nothing of it is
lost, because what it was and said is read again when there is room, and gives the same cache. The oldest never goes
back, and the whole cache holds at least one answer of full length, so every answer ends.

An answer whose dynamic-NTK stretch changes with its length is such a case too: its cache is of no use any more.
"""

from __future__ import annotations

import secrets
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from kiloq.generate.backend import PREFILL_CHUNK, Backend
from kiloq.generate.blocks import BlockAllocator
from kiloq.generate.requests import Answer
from kiloq.model.ntk import ntk_alpha

SCORED_CHUNK = 64  # of prompts whose own logits are wanted: bounds the memory that they take
MOST_RUNNING = 64
LEAST_CHUNK = 32
LONGEST_STEP_S = 0.25  # ours: how long running answers may wait for others' prompts, where the processor is that slow
KEPT_BYTES = 256 << 20  # of blocks that nobody has, unless a limit is given


@dataclass
class Counters:
    """What has happened since the start; they only grow."""

    prefix_queries: int = 0  # tokens that were looked up in the cache
    prefix_hits: int = 0  # and found
    preemptions: int = 0


class Scheduler:
    """The queue, the running answers, and their blocks."""

    def __init__(self, backend: Backend, *, cache_bytes: int | None = None, most_running: int = MOST_RUNNING) -> None:
        self.backend = backend
        self.waiting: deque[Answer] = deque()
        self.running: list[Answer] = []  # in the order of admission
        self.counters = Counters()
        self.most_running = most_running
        total = min(backend.cache_limit_bytes, cache_bytes or backend.cache_limit_bytes) // backend.block_bytes
        self.blocks = BlockAllocator(total, None if cache_bytes else KEPT_BYTES // backend.block_bytes)
        self.max_length = min(backend.config.max_length, total * backend.block_tokens)
        self._pages: dict[int, Any] = {}  # what the backend keeps of published blocks
        self._tokens_per_s = float("inf")  # of prompts
        self._secret = secrets.token_bytes(16)  # nobody can make prompts whose blocks look like another's

    def live(self) -> list[Answer]:
        """All that wait or run."""
        return [*self.running, *self.waiting]

    def enqueue(self, answers: Iterable[Answer]) -> None:
        """Puts answers at the end of the queue."""
        self.waiting.extend(answers)

    def plan(self) -> list[tuple[Answer, int]]:
        """The next step: answers, and up to which of their tokens each is fed."""
        for answer in reversed(list(self.running)):
            if answer.alpha != self.alpha(answer, answer.length()):
                self._put_back(answer)
        self._admit()
        for answer in list(self.running):  # oldest first: the youngest make room
            if answer in self.running:
                self._grow(answer)
        self._drop_forgotten()
        single = [(answer, answer.length()) for answer in self.running if answer.length() - answer.fed == 1]
        return single + self._chunks()

    def alpha(self, answer: Answer, length: int) -> float:
        """The dynamic-NTK stretch of an answer at this length."""
        config = self.backend.config
        frozen = answer.request.params.ntk == "frozen"
        length = len(answer.request.prompt) if frozen else length
        return ntk_alpha(length, config.train_length) if config.dynamic_ntk else 1.0

    def room(self, answer: Answer, tokens: int) -> int:
        """For how many more tokens, at most `tokens`, there are free blocks, which the answer then has."""
        missing = self._blocks_for(answer.length() + tokens) - len(answer.blocks)
        if missing > 0 and (got := self.blocks.take(min(missing, self.blocks.available))):
            answer.blocks += got
            self._drop_forgotten()
        return min(tokens, len(answer.blocks) * self.backend.block_tokens - answer.length())

    def fork(self, answer: Answer, twin: Answer) -> bool:
        """Gives `twin` a copy of the answer's cache and lets it run; False where there is no room."""
        whole = answer.fed // self.backend.block_tokens
        if len(self.running) >= self.most_running or (own := self.blocks.take(len(answer.blocks) - whole)) is None:
            return False
        self._drop_forgotten()
        for block in answer.blocks[:whole]:
            self.blocks.share(block)
        twin.sequence = self.backend.fork(answer.sequence)
        twin.blocks, twin.keys = [*answer.blocks[:whole], *own], list(answer.keys)
        twin.fed, twin.alpha, twin.published = answer.fed, answer.alpha, answer.published
        self.waiting.remove(twin)
        self.running.append(twin)
        return True

    def fed(self, answer: Answer, tokens: int) -> None:
        """So many more of the answer's tokens are in its cache: whole blocks can be found by others from now on."""
        answer.fed += tokens
        size = self.backend.block_tokens
        shared = answer.fed if self.backend.exact_cuts else min(answer.fed, len(answer.request.prompt))
        while (index := answer.published) < shared // size:
            block, (key,) = answer.blocks[index], self._keys(answer, index, index + 1)
            if self.blocks.publish(block, key):
                self._pages[block] = self.backend.page(answer.sequence, index)
            answer.published += 1

    def remove(self, answer: Answer) -> None:
        """The answer has ended."""
        self._let_go(answer)
        if answer in self.running:
            self.running.remove(answer)
        elif answer in self.waiting:
            self.waiting.remove(answer)

    def restart(self, answers: Iterable[Answer]) -> None:
        """Caches that may be half written: these answers begin anew, what they have said is read again."""
        for answer in answers:
            if answer in self.running:
                self._put_back(answer)

    def forget(self) -> None:
        """Empties the cache of what nobody has."""
        self.blocks.forget_idle()
        self._drop_forgotten()

    def took(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens has taken so long: what the next chunk is measured by."""
        if tokens >= LEAST_CHUNK and seconds > 0:
            self._tokens_per_s = tokens / seconds

    def _admit(self) -> None:
        for answer in list(self.waiting):
            if len(self.running) >= self.most_running:
                return
            first = answer.request.answers[0]
            if answer is not first and first in self.running and not first.ids:
                continue  # its twin is reading their prompt
            if not self._place(answer):
                return
            self.waiting.remove(answer)
            self.running.append(answer)

    def _place(self, answer: Answer) -> bool:
        """Finds blocks for all that an answer has so far, and a sequence that begins with what is known of it."""
        alpha = self.alpha(answer, answer.length())
        if alpha != answer.alpha:  # else the keys hold: who waits for room is looked at in every step
            answer.alpha, answer.keys = alpha, []
        scored = answer.request.params.prompt_logprobs is not None
        known = 0 if scored else (answer.length() - 1) // self.backend.block_tokens  # at least one token must be fed
        found = self.blocks.find(self._keys(answer, 0, known))
        pages = [self._pages[block] for block in found]
        while (sequence := self.backend.open(pages)) is None:  # a layer with a window has freed what it would need
            pages.pop()
        self.blocks.release(found[len(pages) :])
        found = found[: len(pages)]
        own, spare = self._blocks_for(answer.length()) - len(found), len(self.running)  # for the next tokens of others
        got = self.blocks.take(own) if own + spare <= self.blocks.available else None
        if got is None:
            self.blocks.release(found)
            return False
        self._drop_forgotten()
        answer.sequence, answer.blocks = sequence, [*found, *got]
        answer.published, answer.fed = len(found), len(found) * self.backend.block_tokens
        if not answer.ids:
            self.counters.prefix_queries += len(answer.request.prompt)
            self.counters.prefix_hits += answer.fed
            answer.reused_tokens = answer.fed
        return True

    def _grow(self, answer: Answer) -> None:
        """Gives a running answer the block for its next token; the youngest make room, itself perhaps."""
        while (missing := self._blocks_for(answer.length()) - len(answer.blocks)) > 0:
            got = self.blocks.take(missing)
            if got is not None:
                answer.blocks += got
                return
            youngest = self.running[-1]
            self.counters.preemptions += 1
            self._put_back(youngest)
            if youngest is answer:
                return

    def _chunks(self) -> list[tuple[Answer, int]]:
        """What those that still read are fed: together about one chunk."""
        work: list[tuple[Answer, int]] = []
        reading = [answer for answer in self.running if answer.length() - answer.fed > 1]
        budget = PREFILL_CHUNK
        if self.backend.exact_cuts and len(reading) < len(self.running):  # others wait for their next token meanwhile
            budget = int(min(max(LEAST_CHUNK, self._tokens_per_s * LONGEST_STEP_S), PREFILL_CHUNK))
        for answer in reading:
            most = SCORED_CHUNK if answer.request.params.prompt_logprobs is not None else PREFILL_CHUNK
            end = min(answer.length(), (answer.fed // most + 1) * most)
            if self.backend.exact_cuts:
                end = min(end, answer.fed + budget)
            if not 0 < end - answer.fed <= budget:
                break
            budget -= end - answer.fed
            work.append((answer, end))
        return work

    def _put_back(self, answer: Answer) -> None:
        self._let_go(answer)
        self.running.remove(answer)
        self.waiting.appendleft(answer)

    def _let_go(self, answer: Answer) -> None:
        blocks, answer.blocks = answer.blocks, []
        answer.sequence, answer.fed, answer.published = None, 0, 0
        self.blocks.release(blocks)
        self._drop_forgotten()

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.backend.block_tokens)

    def _keys(self, answer: Answer, begin: int, end: int) -> list[bytes]:
        """The keys of some blocks: hashes of all tokens up to the block's end and of the stretch they were rotated by."""
        size = self.backend.block_tokens
        while (index := len(answer.keys)) < end:
            before = answer.keys[-1] if answer.keys else struct.pack("<d", answer.alpha)
            tokens = np.array(answer.tokens(index * size, (index + 1) * size), dtype=np.int32).tobytes()
            answer.keys.append(blake2b(before + tokens, digest_size=16, key=self._secret).digest())
        return answer.keys[begin:end]

    def _drop_forgotten(self) -> None:
        """Frees the memory of blocks that are no longer known, before anything is written to new ones."""
        for block in self.blocks.forgotten():
            self._pages.pop(block, None)
