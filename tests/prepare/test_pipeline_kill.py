"""Runs of `kiloq prepare` that something stops: one sentence, the right exit code, nobody left behind, the same bytes later."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .runs import command, contents, done, marks, members, started, wait_for, workers, write_corpus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc, which is Linux's")
FILES = 6


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("kill"), FILES, 700)


@pytest.fixture(scope="module")
def expected(recipe: Path) -> dict[str, str]:
    """The files of a run that nothing disturbs."""
    out = recipe.with_name("undisturbed")
    assert done(recipe, out).returncode == 0
    return contents(out)


def default_interrupt() -> None:
    """As in a shell's foreground: whoever runs the tests may have it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_run_goes_on_after_everything_that_stops_it(recipe: Path, expected: dict[str, str]) -> None:
    """One run that is stopped six times: each time by something else, as soon as a task more has ended."""
    out = recipe.with_name("out")

    def one_more() -> bool:
        return len(marks(out, "stage-0-part")) > before

    for stop in ("worker", "interrupt", "interrupt alone", "ignored interrupt", "terminate", "main"):
        before = min(len(marks(out, "stage-0-part")), FILES - 3)
        ignored = stop == "ignored interrupt"  # as a shell's background job has it
        prepare = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else default_interrupt
        with started(recipe, out, "--json", preexec_fn=prepare) as process:
            assert wait_for(lambda: len(workers(process.pid)) > 0 and one_more()), stop
            if stop == "worker":
                second = done(recipe, out)
                assert second.returncode == 1 and "another kiloq is at work here" in second.stderr
                os.kill(workers(process.pid)[-1], signal.SIGKILL)
            elif stop == "interrupt":
                os.killpg(process.pid, signal.SIGINT)
            elif stop in ("interrupt alone", "ignored interrupt"):
                os.kill(process.pid, signal.SIGINT)
            else:
                os.kill(process.pid, signal.SIGTERM if stop == "terminate" else signal.SIGKILL)
            said, words = process.communicate(timeout=30)
            assert wait_for(lambda: not members(process.pid), 5), (stop, members(process.pid))
        code = {"worker": 1, "terminate": -signal.SIGTERM, "main": -signal.SIGKILL}.get(stop, 130)
        assert (process.returncode, said) == (code, ""), (stop, words)
        sentences = [line for line in words.splitlines() if line.startswith("kiloq:")]
        assert len(sentences) == (stop == "worker"), words
        if stop == "worker":
            assert "a worker was ended from outside" in words and "run the same command again" in words
        assert "Traceback" not in words
        assert not out.exists()
    assert done(recipe, out).returncode == 0
    assert contents(out) == expected
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".out")]


def test_a_worker_that_dies_before_it_has_called_back_is_missed(recipe: Path) -> None:
    """Daft by itself would wait for it for ever."""
    with started(recipe, recipe.with_name("early")) as process:
        assert wait_for(lambda: len(workers(process.pid)) > 0)
        os.kill(workers(process.pid)[0], signal.SIGKILL)
        _, words = process.communicate(timeout=60)
        assert process.returncode == 1 and "a worker was ended from outside" in words.splitlines()[-1], words
        assert wait_for(lambda: not members(process.pid), 5)


def test_a_full_disk_is_a_sentence_and_the_work_goes_on_later(recipe: Path, expected: dict[str, str]) -> None:
    out = recipe.with_name("full")

    def narrow() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    stopped = done(recipe, out, preexec_fn=narrow)
    assert stopped.returncode == 1
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("kiloq: ") and last.endswith("make room, or choose another place"), stopped.stderr
    assert "Traceback" not in stopped.stderr and "full.preparing" in last
    assert done(recipe, out).returncode == 0
    assert contents(out) == expected


def test_a_file_system_without_room_is_a_sentence(recipe: Path, tmp_path: Path) -> None:
    """A real one: 300 kB in memory, mounted where only the command and its workers see it."""
    mount = f"mount -t tmpfs -o size=300k none {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    line = shlex.join(command(recipe, tmp_path / "out"))
    full = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount} && exec {line}"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    last = full.stderr.splitlines()[-1]
    assert full.returncode == 1 and "No space left on device" in last, full.stderr
    assert last.startswith("kiloq: ") and last.endswith("make room, or choose another place")
    assert "Traceback" not in full.stderr and full.stdout == ""


def test_a_bug_in_a_worker_is_one_line_and_a_traceback_only_on_demand(recipe: Path, tmp_path: Path) -> None:
    """The step is made to fail in workers by a module that Python loads at its start."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('udf_worker' in word for word in sys.orig_argv):\n"
        "    from kiloq.prepare.rules.gopher import Gopher\n"
        "    def apply(self, batch):\n"
        "        print('printed by a step')\n"
        "        raise ZeroDivisionError('made to fail')\n"
        "    Gopher.apply = apply\n"
    )
    environment: dict[str, Any] = {"env": {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}}
    found = done(recipe, tmp_path / "out", "--json", **environment)
    assert (found.returncode, found.stdout) == (1, "")
    lines = [line for line in found.stderr.splitlines() if line.startswith("kiloq:")]
    assert len(lines) == 1 and "ZeroDivisionError: made to fail" in lines[0] and "--debug" in lines[0]
    assert "Traceback" not in found.stderr
    shown = done(recipe, tmp_path / "out", "--debug", **environment)
    assert shown.returncode == 1 and "in apply" in shown.stderr


def test_the_command_that_is_tested_has_two_workers(recipe: Path) -> None:
    """Else no process would be there to kill."""
    assert command(recipe, recipe)[-2:] == ["--workers", "2"]
