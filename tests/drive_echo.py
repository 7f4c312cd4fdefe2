"""Runs the real `kiloq` command line with an EchoModel in the place of `load`: `python drive_echo.py chat echo ...`.

ECHO_DELAY: seconds before each piece of an answer; ECHO_CONTEXT: tokens of the context. Any model name but "echo"
is missing.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

from oracles.echo_model import EchoModel

from kiloq.cli import main
from kiloq.core.errors import MissingError


def load(name: str, *, progress: Any = None, **options: Any) -> EchoModel:
    if name == "broken":
        raise ZeroDivisionError("a bug\nof ours")
    if name != "echo":
        raise MissingError(f"{name}: there is no such model: run kiloq get smollm2")
    return EchoModel(
        delay_s=float(os.environ.get("ECHO_DELAY", "0")),
        context=int(os.environ.get("ECHO_CONTEXT", "1000")),
        warnings=tuple(f"{key} {value}" for key, value in sorted(options.items()) if value not in ("auto", 0, None)),
    )


fake = ModuleType("kiloq.generate.load")
fake.load = load  # type: ignore[attr-defined]
sys.modules["kiloq.generate.load"] = fake

if __name__ == "__main__":
    sys.exit(main())
