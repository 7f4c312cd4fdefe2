"""The README's table of ratios from the newest result file, between its markers.

python benchmarks/render.py             writes the README
python benchmarks/render.py --check     exit code 1 where it says something else than the file
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from record import RESULTS
from targets import LLAMA

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- ratios: python benchmarks/render.py -->\n", "<!-- end of ratios -->\n"
MODELS = {"default": "135M", "0.3b": "0.3B", "1.8b": "1.8B"}
WEIGHTS = ("int4", "int8", "bf16")


def newest(name: str) -> Path:
    """The latest result of a program."""
    return max(RESULTS.glob(f"*-{name}.json"))  # names begin with the date


def ratio_table(path: Path) -> str:
    """kiloq's tokens per second over llama.cpp's, a row for each kind of work and a column for each model and precision."""
    ratios = [one for one in json.loads(path.read_text())["figures"]["ratios"] if one["against"] == LLAMA]
    by_place = {(one["work"], one["model"], one["weights"]): one for one in ratios}
    columns = [
        (m, w) for m in MODELS for w in WEIGHTS if any((one["model"], one["weights"]) == (m, w) for one in ratios)
    ]
    works = list(dict.fromkeys(one["work"] for one in ratios))
    lines = [
        "| kiloq / llama.cpp | " + " | ".join(f"{MODELS[model]} {weights}" for model, weights in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for work in sorted(works, key=lambda name: -len([one for one in ratios if one["work"] == name])):
        lines.append(f"| {work} | " + " | ".join(cell(by_place.get((work, *column))) for column in columns) + " |")
    return "\n".join(lines) + f"\n\nFrom [{path.name}](benchmarks/results/{path.name}).\n"


def cell(one: dict[str, Any] | None) -> str:
    """A ratio; in brackets where nobody had the machine for himself in any round."""
    if one is None:
        return ""
    return f"{one['ratio']:.2f}" if one["quiet"] else f"({one['ratio']:.2f})"


def main(check: bool) -> int:
    """Replaces what lies between the markers, or compares it."""
    text = README.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise SystemExit(f"{README.name} has no markers {BEGIN.strip()} and {END.strip()}")
    wanted = f"{head}{BEGIN}{ratio_table(newest('engines'))}{END}{tail}"
    if check:
        return int(text != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
