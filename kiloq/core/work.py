"""The folder beside an output that keeps what a long command has finished, so that a killed one goes on where it was.

It is called `.NAME.<what is being done>`. `job.json` in it says what the work is for, settings and inputs; another job in
the same place starts from the beginning. A lock keeps a second process out while the first is alive: the system frees
it when a process ends in any way.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kiloq.core.errors import BusyError, FormatError, MissingError
from kiloq.core.manifest import move_in
from kiloq.core.safe_json import load_object, write_json

JOB, LOCK, RESULT = "job.json", "lock", "result"
MAX_BYTES = 256 << 20  # of one JSON file of ours


class WorkFolder:
    """The unfinished work for one output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, out: Path, doing: str) -> WorkFolder:
        """The folder of the work that will write `out`."""
        out = out.absolute()
        return cls(out.with_name(f".{out.name}.{doing}"))

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Keeps others out, and gives the file that does: a child that inherits it keeps them out when we are killed.

        Raises BusyError if one is in.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / LOCK
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
            except BlockingIOError:
                ours = False
            if not ours:  # or the other has just ended, and removed the folder with the file that we locked
                raise BusyError(f"{self.folder}: another kiloq is at work here: wait for it, or choose another --out")
            yield file.fileno()

    def begin(self, job: Mapping[str, Any]) -> bool:
        """Make the folder for `job`; True if earlier work on the same job lies in it, else it is empty."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = json.loads(json.dumps(job))
        try:
            if self.job() == record:
                return True
        except (MissingError, FormatError):
            pass
        self.forget()
        for path in self.folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        write_json(self.folder / JOB, record)
        return False

    def forget(self) -> None:
        """Let nothing that lies here count any more."""
        (self.folder / JOB).unlink(missing_ok=True)

    def job(self) -> dict[str, Any]:
        """What the work is for. Raises MissingError or FormatError where there is none."""
        return load_object(self.folder / JOB, MAX_BYTES)

    def begin_result(self, job: Mapping[str, Any]) -> Path:
        """As `begin`; the folder inside that is to become the output, with what earlier work has put there."""
        if self.begin(job) and not self.result.is_dir():  # moved away: that run was killed at its very end
            self.forget()
            self.begin(job)
        self.result.mkdir(exist_ok=True)
        return self.result

    def deliver(self, out: Path) -> None:
        """Move the result to its place, without what killed processes were writing, and remove the rest."""
        for left_over in self.result.rglob(".*.partial-*"):
            left_over.unlink()
        move_in(self.result, out)
        self.remove()

    @property
    def result(self) -> Path:
        return self.folder / RESULT

    def remove(self) -> None:
        """After the result is in its place."""
        shutil.rmtree(self.folder, ignore_errors=True)
