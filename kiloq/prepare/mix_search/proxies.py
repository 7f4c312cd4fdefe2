"""Proxies: models so small that dozens are trained in minutes, each by `kiloq train` in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kiloq.core.errors import FormatError, KiloqError, MissingError, UsageError
from kiloq.core.safe_json import load_object, write_json
from kiloq.core.work import MAX_BYTES

RESULT, MIX = "result.json", "mix.json"
SAID = 2_000  # characters of what a failed training said that are looked at for its sentence


@dataclass
class Proxies:
    """Trains proxies into one folder and knows those that are trained."""

    folder: Path
    recipe: Path  # of `kiloq train`
    corpus: Path
    settings: Sequence[str] = ()  # changes of the recipe
    device: str = "cpu"
    lock: int | None = None  # a file that trainings keep open: the lock on it outlives a search that is killed
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def train(self, name: str, shares: Mapping[str, float], seed: int) -> dict[str, float]:
        """The losses of one proxy on held-out text, source -> nats a token."""
        place = self.folder / name
        try:
            return losses_in(load_object(place / RESULT, MAX_BYTES), place)
        except (MissingError, FormatError):
            pass
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / MIX, {"sources": [{"name": key, "share": share} for key, share in shares.items()]})
        found = losses_in(self._run(place, seed), place)
        write_json(place / RESULT, {"evaluation_losses": found})
        shutil.rmtree(place / "run", ignore_errors=True)  # weights that nobody needs
        return found

    def _run(self, place: Path, seed: int) -> dict[str, object]:
        """The report of `kiloq train`. Raises KiloqError with its sentence."""
        mix = json.dumps(str((place / MIX).absolute()))
        command = [
            sys.executable, "-m", "kiloq", "train", str(self.recipe), "--out", str(place / "run"),
            "--data", str(self.corpus), "--device", self.device, "--json",
            *(word for value in (*self.settings, f"mix={mix}", f"seed={seed}") for word in ("--set", value)),
        ]  # fmt: skip
        if self._stopped.is_set():
            raise KiloqError("the search was stopped: run the same command again to go on")
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # how sums are split depends on the number of threads
            pass_fds=() if self.lock is None else (self.lock,),
        )
        self._running.add(process)
        try:
            said, words = process.communicate()
        finally:
            self._running.discard(process)
        if process.returncode:
            lines = [line for line in words[-SAID:].splitlines() if line.startswith("kiloq: ")]
            sentence = lines[-1].removeprefix("kiloq: ") if lines else f"it ended with code {process.returncode}"
            raise (UsageError if process.returncode == 2 else KiloqError)(f"the training of {place.name}: {sentence}")
        report: dict[str, object] = json.loads(said)
        return report

    @contextmanager
    def stopped_on_error(self) -> Iterator[None]:
        """Ends all trainings, and begins no other, if the block ends in an error or an interrupt."""
        try:
            yield
        except BaseException:
            self._stopped.set()
            for process in list(self._running):
                process.kill()
            raise


def losses_in(report: Mapping[str, object], place: Path) -> dict[str, float]:
    """The losses by source of a report. Raises FormatError where there are none."""
    found = report.get("evaluation_losses")
    if not isinstance(found, dict) or not found or not all(isinstance(loss, int | float) for loss in found.values()):
        raise FormatError(
            f"{place}: the proxy was evaluated on nothing: give the recipe of the proxies a smaller held_out or sequence"
        )
    return {str(name): float(loss) for name, loss in found.items()}
