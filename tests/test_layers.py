"""The house rules that a machine can check: layers, sizes, docstrings, and what start-up may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kiloq"
ROWS = [
    {"core"},
    {"tokenize", "model", "native"},
    {"convert"},
    {"prepare", "train", "quantize"},
    {"generate"},
    {"align", "chat"},
    {"evaluate", "serve"},
]
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400
MAX_FUNCTION_LINES = 60


def row_of(package: str) -> int:
    return next(index for index, row in enumerate(ROWS) if package in row)


def imported(tree: ast.AST) -> set[str]:
    """Top-level kiloq packages that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names if name.startswith("kiloq.")]
    return {part[1] for part in parts if (PACKAGE / part[1]).is_dir()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = len(text.splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split it"
    if text.strip():
        assert ast.get_docstring(tree), "open the file with a paragraph that says what it does"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines: split it"
    inside = path.relative_to(PACKAGE).parts
    if len(inside) == 1:  # kiloq/__init__.py and kiloq/cli.py stand on top of everything
        return
    below = set().union(*ROWS[: row_of(inside[0])])
    upward = imported(tree) - below - {inside[0]}
    assert not upward, f"row {row_of(inside[0])} imports {upward}, which is not strictly below it"


def loaded_by(code: str) -> set[str]:
    """Top-level modules in memory after a fresh interpreter has run `code`."""
    script = f"{code}\nimport sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_import_kiloq_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "tiktoken", "jinja2", "rich", "prompt_toolkit", "click", "transformers"}
    assert not heavy & loaded_by("import kiloq")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['kiloq', '--help']\nfrom kiloq.cli import main\ntry: main()\nexcept SystemExit: pass"
    )
    heavy = {"torch", "numpy", "tiktoken", "jinja2", "rich", "prompt_toolkit", "transformers"}
    assert not heavy & loaded_by(code)


def test_reading_and_converting_load_no_torch() -> None:
    assert "torch" not in loaded_by("import kiloq.convert.source, kiloq.convert.write, kiloq.tokenize.tokenizer")


def test_public_names_resolve() -> None:
    import kiloq

    assert set(dir(kiloq)) >= set(kiloq.__all__)
    for name in kiloq.__all__:
        assert getattr(kiloq, name).__doc__
    with pytest.raises(AttributeError, match="no_such_name"):
        kiloq.no_such_name  # noqa: B018
