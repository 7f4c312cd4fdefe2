"""The process of a later stage: `python -m kiloq.generate.stage_worker`, started by the first one (`stages.py`).

Messages come as lines of JSON on stdin, the first of which says which part of which model this is; hidden states come
from the stage before and go to the next. News goes out on stdout: ready, connected, how many pieces are done, and what
went wrong. A step's rows run one after another, and all that will come is asked for at its begin: while this stage
runs the second row, the next one has the first.

It ends when its first process does, however that ends: then stdin ends, or another process becomes its parent. Ctrl-C
and SIGTERM are for the first process, which may still finish answers; here they are ignored.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

import torch

from kiloq.convert.source import open_model
from kiloq.core.errors import KiloqError
from kiloq.generate.stage_part import LostError, Part, Piece, Transfer, Wires, load_part, meet
from kiloq.generate.stage_plan import Share

GLANCE_S = 1.0  # how often it looks who its parent is


def main() -> None:
    """Runs until the first process ends."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed goes to stderr
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(inbox,), daemon=True).start()
    begin = inbox.get()
    threading.Thread(target=_watch, args=(begin["parent"],), daemon=True).start()
    try:
        _work(begin, inbox, out)
    except LostError:
        _tell(out, lost=True)
    except KiloqError as error:
        _tell(out, failed=str(error))
    except Exception as error:
        traceback.print_exc()
        _tell(out, failed=f"{type(error).__name__}, the log has the details")
    finally:
        os._exit(1)  # neither threads nor connections are waited for


def _read(inbox: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Takes messages in; when there can be no more the process ends, whatever it is doing."""
    for line in sys.stdin.buffer:
        inbox.put(json.loads(line))
    os._exit(0)


def _watch(parent: int) -> None:
    """A copy of the first process, made by fork, may hold stdin open when that one is gone."""
    while os.getppid() == parent:
        time.sleep(GLANCE_S)
    os._exit(0)


def _tell(out: TextIO, **news: Any) -> None:
    try:
        out.write(json.dumps(news) + "\n")
        out.flush()
    except BrokenPipeError:
        os._exit(0)  # nobody is left to be told


def _work(begin: dict[str, Any], inbox: queue.SimpleQueue[dict[str, Any]], out: TextIO) -> None:
    torch.set_num_threads(begin["threads"])  # as the first process has: others could add up in another order
    share = Share(*begin["share"])
    source = open_model(begin["path"])
    part, broken = load_part(source, share, begin["place"], begin["dtype"], begin["cache_dtype"], lambda share: None)
    _tell(out, ready=True, broken=broken)
    where = inbox.get()
    wires = Wires(meet(where), share, begin["place"], where["host"])
    _tell(out, connected=True)
    done = 0
    while True:
        message = inbox.get()
        part.keep(message)
        if message["do"] == "run":
            for _ in _run(part, wires, [Piece(*piece) for piece in message["pieces"]]):
                done += 1
                _tell(out, done=done)


def _run(part: Part, wires: Wires, pieces: list[Piece]) -> Iterator[None]:
    """Runs the rows of one call; yields after each."""
    share = part.share
    coming = [wires.receive(part.sent_shape(piece), part, share.stage - 1) for piece in pieces]
    going: list[Transfer] = []
    for piece, transfer in zip(pieces, coming, strict=True):
        x_1TC = part.run(piece, transfer.wait())
        going.append(wires.send(part.answer(piece, x_1TC), 0) if share.last else wires.send(x_1TC, share.stage + 1))
        yield
    for sent in going:
        sent.wait()


if __name__ == "__main__":
    main()
