"""The engine's backend over several processes: each has some layers of the network, and one token passes through all.

This process is the first stage: it has the embedding and the first layers, and starts the others (`stage_worker.py`).
It sends a row's hidden states to the second stage and goes on with the next row, so that all stages work at once when
there are as many rows; the last one sends logits back, and tokens are drawn here. Rows are not put together, as in
`TorchBackend` and for the same reason; the two give the same logits to the last bit.

All messages leave from one thread that only does this: Ctrl-C, which stops the thread that asked, can then not leave
half a message or half a step behind, and whoever asks from another thread waits for their turn. Caches are known by
numbers; when nobody has a number any more, the next message says so.

It is for models that do not fit into the memory of one GPU or of one machine's part (a NUMA node); alone, a request is
not faster than in one process.
"""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kiloq.convert.source import ModelSource
from kiloq.core.errors import KiloqError
from kiloq.generate.backend import PREFILL_CHUNK, Outcome, Row, check_process, drawn
from kiloq.generate.stage_crew import Crew
from kiloq.generate.stage_part import POOLED, Part, Piece, Wires, load_part, meet
from kiloq.generate.stage_plan import StagePlan, shares
from kiloq.model.flops import cache_bytes

Progress = Callable[[str], None]


class Numbered:
    """A sequence, or a page of one: the number of its caches, which are dropped with it."""

    def __init__(self, number: int, dropped: deque[int]) -> None:
        self.number = number
        weakref.finalize(self, dropped.append, number).atexit = False


class Driver:
    """One thread that runs what it is given, in order."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=_drive, args=(self._tasks,), name="kiloq-stages", daemon=True).start()

    def submit(self, task: Callable[[], Any]) -> Future[Any]:
        """What the task will give."""
        future: Future[Any] = Future()
        self._tasks.put((task, future))
        return future

    def stop(self) -> None:
        """Ends the thread after what it has been given."""
        self._tasks.put(None)


def _drive(tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    while (given := tasks.get()) is not None:
        task, future = given
        try:
            future.set_result(task())
        except BaseException as error:
            future.set_exception(error)
        del given, task, future  # what they hold is not kept until the next one comes


class StagedBackend:
    """See `Backend`; made by `start`."""

    takes_guesses = False
    exact_cuts = False
    block_tokens = PREFILL_CHUNK
    cache_limit_bytes = 1 << 40

    def __init__(
        self, source: ModelSource, plan: StagePlan, places: Sequence[str], dtype: str, cache_dtype: str, say: Progress
    ) -> None:
        self.name = f"torch, {plan.count} stages"
        self.config, self.dtype = source.config, dtype
        self.device = ", ".join(places)
        self.block_bytes = cache_bytes(self.config, self.block_tokens, cache_dtype)
        self._process = os.getpid()
        self._numbers = itertools.count()
        self._dropped: deque[int] = deque()
        self._crew = Crew(shares(self.config.num_layers, plan.count))
        self._driver = Driver()
        self._folder = tempfile.mkdtemp(prefix="kiloq-stages-")  # which nobody else can read
        self._end = weakref.finalize(self, _end, self._crew, self._driver, self._folder, self._process)
        try:
            self._part = self._load(source, places, dtype, cache_dtype, say)
            self._wires = self._connect(plan, places)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """The processes of the later stages."""
        return self._crew.pids

    def close(self) -> None:
        """Ends the other processes; the model answers no more."""
        self._end()

    def wait_for_failure(self) -> str | None:
        """Waits until the stages have failed, and says why; None when the model was closed instead."""
        self._crew.ended.wait()
        return self._crew.failure

    def open(self, pages: Sequence[Numbered] = ()) -> Numbered:
        """A new sequence, empty or with the tokens of pages."""
        return self._make({"do": "open", "pages": [page.number for page in pages]}, pages)

    def page(self, sequence: Numbered, index: int) -> Numbered:
        """A copy of a block of a sequence."""
        begin = index * self.block_tokens
        message = {"do": "part", "of": sequence.number, "begin": begin, "end": begin + self.block_tokens}
        return self._make(message, [sequence])

    def fork(self, sequence: Numbered) -> Numbered:
        """A copy of a sequence and its cache."""
        return self._make({"do": "fork", "of": sequence.number}, [sequence])

    def step(self, rows: list[Row]) -> list[Outcome]:
        """Runs all rows. Raises KiloqError, naming the stage, when one of them fails."""
        wanted = [max(row.wanted, int(row.draw is not None)) for row in rows]
        pieces = [Piece(row.sequence.number, len(row.ids), row.alpha, n) for row, n in zip(rows, wanted, strict=True)]
        answers = self._ask(pieces, [row.ids for row in rows], rows)
        outcomes = []
        for row, piece, answer in zip(rows, pieces, answers, strict=True):
            logits_NV = self._crew.wait(answer)
            outcomes.append(drawn(row, logits_NV if piece.wanted else None))
        return outcomes

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits [T, V] of all positions in one uncached pass."""
        (answer,) = self._ask([Piece(None, len(ids), None, len(ids))], [ids])
        logits_TV: NDArray[np.float32] = self._crew.wait(answer)
        return logits_TV

    def pooled(self, ids: list[int]) -> NDArray[np.float32]:
        """The mean [C] over all positions of the final norm's outputs."""
        (answer,) = self._ask([Piece(None, len(ids), None, POOLED)], [ids])
        mean_C: NDArray[np.float32] = self._crew.wait(answer)[0]
        return mean_C

    def _load(self, source: ModelSource, places: Sequence[str], dtype: str, cache_dtype: str, say: Progress) -> Part:
        """Has every stage load its part at the same time."""
        common = {"parent": os.getpid(), "path": str(Path(source.path).resolve()), "threads": torch.get_num_threads(),
                  "dtype": dtype, "cache_dtype": cache_dtype}  # fmt: skip
        crew = self._crew
        for share, place in zip(crew.shares[1:], places[1:], strict=True):
            own = [share.stage, share.stages, share.begin, share.end]
            crew.tell(common | {"share": own, "place": place}, share.stage)
        first = crew.shares[0]
        part, broken = load_part(
            source, first, places[0], dtype, cache_dtype, lambda share: say(f"loading {first} as {dtype}: {share:.0%}")
        )
        say("waiting for the other stages")
        for news in crew.gather("ready"):
            broken += news["broken"]
        source.warn_of_broken(list(dict.fromkeys(broken)))  # a tied embedding is the head as well
        return part

    def _connect(self, plan: StagePlan, places: Sequence[str]) -> Wires:
        """Has all stages meet and open connections between them."""
        crew, first = self._crew, self._crew.shares[0]
        where: dict[str, Any] = {"do": "connect", "size": plan.count, "host": "127.0.0.1"}
        listener = None
        if plan.rendezvous is None:
            where["file"] = f"{self._folder}/meeting"
        else:
            with plan.listen() as listening:
                where["host"], where["port"] = listening.getsockname()[:2]
                listener = listening.detach()  # the store closes it

        def connect() -> Wires:
            crew.tell(where)
            return Wires(meet(where, listener=listener), first, places[0], where["host"])

        wires: Wires = crew.wait(self._submit(connect), hurried=False)
        crew.gather("connected")
        if places[0] == "cpu":  # NCCL makes some of its connections when they are first used
            shutil.rmtree(self._folder, ignore_errors=True)
        return wires

    def _make(self, message: dict[str, Any], held: Sequence[Numbered]) -> Numbered:
        """A cache in every stage, made of those that are held meanwhile."""
        made = Numbered(next(self._numbers), self._dropped)
        message["new"] = made.number

        def make(_: object = (held, made)) -> None:  # dropped before it is made, it would stay for ever
            message["drop"] = self._drops()
            self._crew.tell(message)
            self._part.keep(message)

        self._crew.wait(self._submit(make))
        return made

    def _ask(self, pieces: list[Piece], ids: list[list[int]], held: object = None) -> list[Future[Any]]:
        """The answers that will come, as float32 arrays; `held` is kept until all have."""
        answers: list[Future[Any]] = [Future() for _ in pieces]

        def run(_: object = held) -> None:
            self._exchange(pieces, ids, answers)

        self._submit(run, answers)
        return answers

    def _submit(self, task: Callable[[], Any], answers: Sequence[Future[Any]] = ()) -> Future[Any]:
        """Has the driver do it; where that fails the stages have, and all answers are that."""
        check_process(self._process)
        self._crew.check()

        def guarded() -> Any:
            try:
                return task()
            except BaseException as error:
                sentence = self._crew.blame(error, self._crew.shares[0])
                for answer in answers:
                    if not answer.done():
                        answer.set_exception(KiloqError(sentence))
                raise KiloqError(sentence) from None

        return self._driver.submit(guarded)

    def _drops(self) -> list[int]:
        return [self._dropped.popleft() for _ in range(len(self._dropped))]

    @torch.inference_mode()
    def _exchange(self, pieces: list[Piece], ids: list[list[int]], answers: list[Future[Any]]) -> None:
        drop, part, wires = self._drops(), self._part, self._wires
        self._crew.run(pieces, drop)
        part.keep({"do": "run", "drop": drop})
        going = []
        for number, (piece, tokens) in enumerate(zip(pieces, ids, strict=True), self._crew.done[0] + 1):
            ids_1T = torch.tensor([tokens], dtype=torch.long, device=part.device)
            going.append(wires.send(part.run(piece, ids_1T), 1))
            self._crew.moved(0, number)
        last = wires.size - 1
        for piece, answer in zip(pieces, answers, strict=True):
            coming = wires.receive(part.answer_shape(piece), part, last, torch.float32)
            answer.set_result(coming.wait().cpu().numpy())
        for sent in going:
            sent.wait()


def _end(crew: Crew, driver: Driver, folder: str, process: int) -> None:
    if os.getpid() != process:
        return  # a copy made by fork has no children of that name
    crew.end()
    driver.stop()
    shutil.rmtree(folder, ignore_errors=True)
