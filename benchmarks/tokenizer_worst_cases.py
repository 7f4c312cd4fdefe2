"""Cost per byte of 1 MB texts that break other tokenizers, against ordinary text, in one interleaved run.

    python benchmarks/tokenizer_worst_cases.py

tiktoken alone is not in the comparison: 1 MB of spaces ends its process with a stack overflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import record

from kiloq.tokenize.tokenizer import Tokenizer

SIZE = 1_000_000
WAR_AND_PEACE = Path(__file__).parents[2] / "shared" / "data" / "long_documents"


def ordinary_text() -> str:
    """English prose: from the data folder where it is there, else the project's own pages."""
    files = sorted(WAR_AND_PEACE.glob("*en*.txt*")) + sorted(Path(__file__).parents[1].rglob("*.md"))
    text = next(file.read_text(encoding="utf-8") for file in files if file.suffix in (".txt", ".md"))
    return "".join(islice(cycle(text), SIZE))


def cases() -> dict[str, str]:
    """Name -> a text of about SIZE bytes."""
    return {
        "ordinary text": ordinary_text(),
        "one letter": "a" * SIZE,
        "spaces": " " * SIZE,
        "one Han character": "的" * (SIZE // 3),
        "digits": "7" * SIZE,
        "newlines": "\n" * SIZE,
        "carriage returns and newlines": "\r\n" * (SIZE // 2),
        "tabs and spaces, then a letter": "\t " * (SIZE // 2) + "x",
        "punctuation": "!" * SIZE,
        "ideographic spaces": "\u3000" * (SIZE // 3),
        "combining marks": "e" + "\u0301\u0323" * (SIZE // 4),
        "two letters in turn": "ab" * (SIZE // 2),
        "one emoji": "\U0001f600" * (SIZE // 4),
    }


def nanoseconds_per_byte(tokenizer: Tokenizer, text: str) -> Callable[[], float]:
    """CPU time of one encoding over the bytes of the text."""
    size = len(text.encode())

    def run() -> float:
        start = time.process_time()
        tokenizer.encode(text)
        return (time.process_time() - start) / size * 1e9

    return run


if __name__ == "__main__":
    qwen = Tokenizer.load("qwen")
    figures = record.interleaved({name: nanoseconds_per_byte(qwen, text) for name, text in cases().items()})
    normal = figures["ordinary text"]["median"]
    for name, figure in figures.items():
        figure["times ordinary"] = round(figure["median"] / normal, 3)
        print(f"{name:32} {figure['median']:8.1f} ns/byte  {figure['times ordinary']:6.2f} x ordinary text")
    print(record.write("tokenizer-worst-cases", figures))
