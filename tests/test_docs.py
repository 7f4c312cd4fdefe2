"""README and docs, run: every console line and every Python block, in a scratch folder, with the real default model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import default_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(kind: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.M | re.S)]


def test_console_lines_run_and_show_what_the_page_says(tmp_path: Path) -> None:
    default_model()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert any(line.startswith("$ kiloq") for line in lines)
    for index, line in enumerate(lines):
        if not line.startswith("$ ") or "make" in line:
            continue
        done = subprocess.run(
            line[2:],
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        shown = lines[index + 1] if index + 1 < len(lines) else "$"
        assert shown.startswith("$") or shown in done.stdout, line


def test_python_blocks_run(tmp_path: Path) -> None:
    default_model()
    code = blocks("python")
    assert code
    for block in code:
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_make_chat_answers_a_line_from_stdin() -> None:
    """The README's first promise. The environment that `make` makes is there when `make test` runs this."""
    if not (ROOT / ".venv" / ".chat-ready").exists():
        pytest.skip("there is no .venv here: run this through `make test`")
    done = subprocess.run(
        ["make", "chat"],
        cwd=ROOT,
        input="What is the capital of France?\n",
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "The capital of France is Paris."


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
