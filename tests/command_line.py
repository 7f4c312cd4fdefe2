"""Runs `kiloq` as a user does: a process of its own, with a private home, by pipes or in a pseudo-terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect

TESTS = Path(__file__).resolve().parent
ECHO = [sys.executable, str(TESTS / "drive_echo.py")]
KILOQ = [sys.executable, "-m", "kiloq.cli"]


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a program needs, without the colours, languages and homes of whoever runs the tests."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    source = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    # Without an answer to its question for the cursor's place, prompt_toolkit would print a warning.
    fixed = {"PYTHONPATH": source, "LANG": "C.UTF-8", "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
    return keep | fixed | {"KILOQ_HOME": str(home)} | more


def run(
    arguments: list[str], home: Path, stdin: str | bytes = b"", *, program: list[str] = ECHO, **more: str
) -> subprocess.CompletedProcess[str]:
    """One run with pipes; stdout and stderr as text."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*program, *arguments], input=data, capture_output=True, timeout=60, env=environment(home, **more), check=False
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def spawn(arguments: list[str], home: Path, *, columns: int = 80, **more: str) -> Any:
    """A run in a pseudo-terminal of 24 rows."""
    return pexpect.spawn(
        ECHO[0],
        [ECHO[1], *arguments],
        env=environment(home, **more),
        encoding="utf-8",
        timeout=8,
        dimensions=(24, columns),
    )
