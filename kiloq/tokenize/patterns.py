"""The four ways of cutting text into pieces that byte-level BPE models of this family use, and their names elsewhere.

A merge never crosses a piece. Only these expressions are accepted from files: an expression from a stranger's file
could take exponential time, and tiktoken, Hugging Face and llama.cpp do not agree on the rest. The long-run cutting of
`bpe.py` relies on a property that all four have: a letter ends its piece where the next character is no letter, and a
digit where the next is no digit. Sources: Qwen's PAT_STR (cl100k's with single digits), GPT-2's encoder, LLaMA-3's and
SmolLM2's tokenizer.json; llama.cpp's names are the values of `tokenizer.ggml.pre`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kiloq.core.errors import FormatError
from kiloq.core.files import shown

_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class SplitPattern:
    """One pre-tokeniser: its name in GGUF, the expression, and how the expression treats a run of digits."""

    name: str
    expression: str
    digits: Literal["single", "triple", "run"]

    def pre_tokenizer(self) -> dict[str, Any]:
        """The `pre_tokenizer` of a tokenizer.json."""
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
        if self is GPT2:
            return byte_level
        if self is SMOLLM:
            return _sequence({"type": "Digits", "individual_digits": True}, byte_level)
        split = {"type": "Split", "pattern": {"Regex": self.expression}, "behavior": "Isolated", "invert": False}
        return _sequence(split, {**byte_level, "use_regex": False})


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


QWEN = SplitPattern("qwen2", _CL100K.replace("DIGITS", r"\p{N}"), "single")
LLAMA3 = SplitPattern("llama-bpe", _CL100K.replace("DIGITS", r"\p{N}{1,3}"), "triple")
GPT2 = SplitPattern("gpt-2", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", "run")
# SmolLM2 cuts out every digit first and then applies GPT-2's expression to what lies between. In one expression:
# white space before a digit stands at the end of its part, so all of it is one piece.
SMOLLM = SplitPattern(
    "smollm", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+", "single"
)

# llama.cpp, src/llama-vocab.cpp: names that select the same expression.
_GGUF_NAMES = {
    QWEN: ("qwen2", "deepseek-r1-qwen"),
    LLAMA3: ("llama-bpe", "llama3", "llama-v3"),
    GPT2: ("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais"),
    SMOLLM: ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"),
}


def from_gguf(pre: str, where: object) -> SplitPattern:
    """The pattern with llama.cpp's name `pre`; FormatError names an unknown one."""
    for pattern, names in _GGUF_NAMES.items():
        if pre in names:
            return pattern
    known = ", ".join(name for names in _GGUF_NAMES.values() for name in names)
    raise FormatError(f"{where}: uses the pre-tokeniser {shown(pre)}, which is not read: it can be one of {known}")


def from_json(value: Any, where: object) -> SplitPattern:
    """The pattern that a tokenizer.json's `pre_tokenizer` describes; FormatError for any other."""
    steps = value.get("pretokenizers") if isinstance(value, dict) and value.get("type") == "Sequence" else [value]
    described = [_essence(step) for step in steps] if isinstance(steps, list) else []
    for pattern in _GGUF_NAMES:
        own = pattern.pre_tokenizer()
        if described == [_essence(step) for step in own.get("pretokenizers", [own])]:
            return pattern
    names = "+".join(name for name, _ in described) or "none"
    raise FormatError(
        f"{where}: uses the pre-tokeniser {shown(names)} in a form that is not read: "
        "byte-level BPE with the expression of GPT-2, LLaMA-3, Qwen or SmolLM2 is"
    )


def _essence(step: Any) -> tuple[str, tuple[Any, ...]]:
    """The type of one step and those of its fields that change pieces (offset trimming does not)."""
    if not isinstance(step, dict):
        return str(step), ()
    kind = str(step.get("type"))
    if kind == "ByteLevel":
        return kind, (bool(step.get("add_prefix_space", True)), bool(step.get("use_regex", True)))
    if kind == "Digits":
        return kind, (bool(step.get("individual_digits", False)),)
    pattern = step.get("pattern")
    expression = pattern.get("Regex") if isinstance(pattern, dict) else pattern
    return kind, (str(expression), str(step.get("behavior")), bool(step.get("invert", False)))
