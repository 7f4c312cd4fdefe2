"""README and docs, run: every console line and every Python block, in a scratch folder, with the real default model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import default_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(kind: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.M | re.S)]


def run(command: list[str], folder: Path, stdin: str = "") -> str:
    """stdout of a command that must succeed, with this environment's programs first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        command, cwd=folder, env=environment, input=stdin, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def test_console_lines_run_and_show_what_the_page_says(tmp_path: Path) -> None:
    default_model()
    shutil.copytree(ROOT / "docs", tmp_path / "docs")  # texts that a checkout has
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert any(line.startswith("$ kiloq") for line in lines)
    for line, after in zip(lines, [*lines[1:], "$"], strict=True):
        if line.startswith("$ kiloq"):
            shown = run(["sh", "-c", line[2:]], tmp_path)
            assert after.startswith("$") or after in shown, line


def test_python_blocks_run(tmp_path: Path) -> None:
    default_model()
    code = blocks("python")
    assert code
    for block in code:
        run([sys.executable, "-c", block], tmp_path)


def test_make_chat_answers_a_line_from_stdin() -> None:
    """The README's first promise. The environment that `make` makes is there when `make test` runs this."""
    if not (ROOT / ".venv" / ".chat-ready").exists():
        pytest.skip("there is no .venv here: run this through `make test`")
    answer = run(["make", "--no-print-directory", "chat"], ROOT, "What is the capital of France?\n")
    assert answer.strip() == "The capital of France is Paris."


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_measured_tables_are_those_of_the_result_files() -> None:
    for program in ("render.py", "prepare_tables.py"):
        check = [sys.executable, str(ROOT / "benchmarks" / program), "--check"]
        assert subprocess.run(check, check=False).returncode == 0, f"run python benchmarks/{program}"
