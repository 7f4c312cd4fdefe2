"""A minute of benchmarks/soak.py: four times the load, clients that leave, nonsense; judged but for times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import default_model

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.timeout(300)
def test_a_minute_of_four_times_the_load(tmp_path: Path) -> None:
    default_model()
    command = [sys.executable, str(PROGRAM), "--seconds", "60", "--untimed", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert figures["outcomes"]["stream: 200"] > 20 and figures["outcomes"]["leave: left"] > 20
