"""A program of its own: compiles one grammar where it can do no harm, and tells whether it could.

llguidance bounds most of its work, but not all. Measured on version 1.9.1 with grammars and schemas of less than
64 KiB: chains of references or rules overflow the stack and end the process, 800 multiples or 1,200 patterns of
property names take minutes, nested terminals take a gigabyte. No thread can be stopped, so the compiler runs this file
in a child process first, with limits on memory, processor time and stack, and kills it when its time is up. What
passes here is then compiled in the server, which has more stack and memory than the child had.

Reads a task as JSON from stdin and writes a verdict as JSON to stdout; see `attempt`. Imports nothing of kiloq, so
that it starts quickly.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from typing import Any

# Bytes of stack: an eighth of what Linux gives the threads of the server, which then run the same recursion. Enough
# for a chain of about 150 references; Python itself wants 32 KiB.
STACK_BYTES = 1 << 20
WALK_STEPS = 64  # of a random text: finds forms that stop working with their first letters


def attempt(grammar: str, limits: dict[str, Any]) -> dict[str, Any]:
    """Compiles `grammar` for a vocabulary of bytes and writes some of a text.

    Returns llguidance's "error", or "", and how many "bytes" of memory it took.
    """
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    tokenizer = LLTokenizer("byte")
    before = peak_bytes()
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False, **limits))
    chance = random.Random(0)
    ends = set(tokenizer.eos_tokens)
    for _ in range(WALK_STEPS):
        if matcher.is_stopped():  # by an error, too
            break
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        tokens = [token for token in range(tokenizer.vocab_size) if mask >> token & 1 and token not in ends]
        if matcher.is_error() or not tokens:
            break
        matcher.consume_token(chance.choice(tokens))
    return {"error": matcher.get_error(), "bytes": peak_bytes() - before}


def confine(data_bytes: int, cpu_s: int) -> None:
    """Limits this process, where the system can: then allocations fail, and endless work is ended."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))


def peak_bytes() -> int:
    """The most memory that this program had; 0 where the system does not say. getrusage counts the parent's, too."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123 - starts sooner
            lines = dict(line.split(":", 1) for line in status if ":" in line)
    except OSError:
        return 0
    return int(lines.get("VmHWM", "0").split()[0]) << 10


def main() -> None:
    """Task {"grammar", "limits", "data_bytes", "cpu_s"}; verdict {"error", "bytes"}."""
    task: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    confine(task["data_bytes"], task["cpu_s"])
    verdict: dict[str, Any] = {}

    def run() -> None:
        try:
            verdict.update(attempt(task["grammar"], task["limits"]))
        except BaseException as error:  # a panic of llguidance is no Exception
            verdict["error"] = f"{type(error).__name__}: {error}"

    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    sys.stdout.write(json.dumps(verdict))


if __name__ == "__main__":
    main()
