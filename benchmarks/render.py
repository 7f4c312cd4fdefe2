"""The README's two tables of measurements from the newest result files, between their markers.

    python benchmarks/render.py             writes the README
    python benchmarks/render.py --check     exit code 1 where it says something else than the files
"""  # fmt: skip

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import marked
from record import RESULTS
from speculation import COPYING_FLOOR
from targets import LLAMA, WHEEL

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- begin: python benchmarks/render.py {name} -->\n", "<!-- end: {name} -->\n"
MODELS = {"default": "135M", "0.3b": "0.3B", "1.8b": "1.8B"}
WEIGHTS = ("int4", "int8", "bf16")

Figures = dict[str, Any]


def newest(name: str) -> Path:
    """The latest result of a program."""
    return max(RESULTS.glob(f"*-{name}.json"))  # names begin with the date


def ratio_table() -> str:
    """kiloq's tokens per second over llama.cpp's, a row for each kind of work and a column for each model and precision."""
    path = newest("engines")
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


def cell(one: Figures | None) -> str:
    """A ratio; in brackets where nobody had the machine for himself in any round."""
    if one is None:
        return ""
    return f"{one['ratio']:.2f}" if one["quiet"] else f"({one['ratio']:.2f})"


def start(figures: Figures) -> str:
    """From process to first token, both engines."""
    seconds = figures["default"]["int4"]["seconds to first token"]
    return f"{seconds['kiloq']['median']:.2f} s, {seconds[WHEEL]['median']:.2f} s"


def bandwidth(figures: Figures) -> str:
    """Shares of the read bandwidth in decoding, a model each."""
    shares = [one for one in figures["ratios"] if one["against"] == "bandwidth"]
    return "; ".join(
        f"{label} " + ", ".join(f"{weights} {one['ratio']:.0%}" for weights in WEIGHTS for one in shares
                                if (one["model"], one["weights"]) == (model, weights))
        for model, label in MODELS.items()
    )  # fmt: skip


def cache(figures: Figures) -> str:
    """Memory and perplexity of the int8 cache against bf16."""
    sizes = [cell["int8"]["cache_bytes"] / cell["bf16"]["cache_bytes"] for cell in figures["cells"]]
    rise = max(one["rise_percent"] for one in figures["perplexity"].values())
    return f"{max(sizes):.2f} times the memory, {rise:+.2f} % perplexity"


def activations(figures: Figures) -> str:
    """What 8-bit activations and a bf16 cache cost."""
    rise = max(one["rise_of_bf16_over_fp32_percent"] for one in figures["perplexity"].values())
    return f"{rise:+.2f} % perplexity"


def guesses(figures: Figures) -> str:
    """Medians and the worst of both kinds of tasks."""
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for one in figures["ratios"]:
        kinds[one["floor"] == COPYING_FLOOR].append(one["ratio"])
    told = {name: kinds[copies] for name, copies in (("copying", True), ("elsewhere", False))}
    return "; ".join(f"{name} {statistics.median(v):.2f}x (worst {min(v):.2f}x)" for name, v in told.items())


def context(figures: Figures) -> str:
    """The growth of a token's time, full attention beside windows."""
    grown = {name: fits["seconds_per_token"]["last_over_first"] for name, fits in figures["growth"].items()}
    last = {name: rows[-1] for name, rows in figures["rows"].items()}
    return "; ".join(
        f"{name} {1e3 * last[name]['seconds_per_token']:.1f} ms ({grown[name]:.1f} times that at 1,024), "
        f"{last[name]['cache_bytes'] / 2**20:.0f} MiB of cache"
        for name in grown
    )


def quality(figures: Figures) -> str:
    """Rises of perplexity of the variants that have limits."""
    names = {"smollm2": "default", "trained": "trained here"}
    return "; ".join(
        f"{names[model]}: "
        + ", ".join(
            f"{v} {found['variants'][v]['rise_percent']:+.2f} %" for v in ("int8 gptq", "int4 gptq", "int4 rtn")
        )
        for model, found in figures.items()
    )


def speed(figures: Figures) -> str:
    """Minutes and memory of GPTQ."""
    return f"{figures['seconds'] / 60:.1f} minutes, peak {figures['peak_bytes'] / 2**30:.1f} GiB"


def loading(figures: Figures) -> str:
    """Seconds of both ways, and the peak."""
    ways = {name: found["load_s"]["median"] for name, found in figures["ways"].items()}
    told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in ways.items())
    return f"{told}; peak {figures['peak_over_packed']:.2f} times the packed weights"


def sampling(figures: Figures) -> str:
    """The dearest rule for both kinds of logits."""
    shares = figures["share_of_step"]
    flat = max(share for name, share in shares.items() if name.startswith("flat"))
    steep = max(share for name, share in shares.items() if not name.startswith("flat"))
    return f"steep logits at most {steep:.1%}, flat ones {flat:.1%}"


def serving(figures: Figures) -> str:
    """Tokens a second of both servers, and the p95 of the first token."""
    return "; ".join(
        f"{name} {of['1 stream']['tokens_per_s']:.0f}, {of['16 streams']['tokens_per_s']:.0f} tokens/s, first token p95 "
        f"{of['16 streams']['time_to_first_token_s_p95']:.1f} s"
        for name, of in figures.items()
        if name != "ratios"
    )


def vllm(figures: Figures) -> str:
    """Tokens that agree."""
    equal = sum(row["equal_tokens"] for row in figures["answers"])
    return f"{equal} of {figures['prompts'] * figures['tokens']} (vLLM {figures['vllm']})"


ROWS: tuple[tuple[str, str, Callable[[Figures], str]], ...] = (
    ("engines", "`kiloq generate smollm2 Hi` to its first token, and xllamacpp's", start),
    ("engines", "decoding alone, share of the read bandwidth measured beside it", bandwidth),
    ("sampling", "drawing one of 151,936 tokens, share of a 0.3B int4 step", sampling),
    ("kv-cache", "int8 key/value cache against bf16", cache),
    ("kv-cache", "8-bit activations and bf16 cache against fp32, same weights", activations),
    ("long-context", "a token behind 32,768, default model, int8 cache", context),
    ("speculation", "guessing by looking into the prompt, same answers", guesses),
    ("quantisation-quality", "perplexity after quantising, groups of 128", quality),
    ("serving", "1 and 16 streams of the default model in int8, servers on the same weights", serving),
    ("vllm", "greedy tokens of `convert --to qwen2` in vLLM, equal to ours", vllm),
    ("quantisation-speed", "GPTQ of 0.5 billion weights", speed),
    ("loading", "loading 7 billion weights in 4 bits", loading),
)


def figure_table() -> str:
    """A line a claim that has been measured, with its file."""
    lines = ["| what | figure | file |", "|---|---|---|"]
    for name, what, told in ROWS:
        if not any(RESULTS.glob(f"*-{name}.json")):
            continue
        path = newest(name)
        lines.append(f"| {what} | {told(json.loads(path.read_text())['figures'])} | [{name}](benchmarks/results/{path.name}) |")  # fmt: skip
    return "\n".join(lines) + "\n"


def filled(text: str, name: str, table: str) -> str:
    """`text` with the table between the markers of that name."""
    return marked.filled(README, text, BEGIN.format(name=name), END.format(name=name), table)


def main(check: bool) -> int:
    """Replaces what lies between the markers, or compares it."""
    text = README.read_text(encoding="utf-8")
    wanted = filled(filled(text, "ratios", ratio_table()), "figures", figure_table())
    return marked.write_or_check(README, wanted, check)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
