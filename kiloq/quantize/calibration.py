"""Texts to calibrate on and to measure with, as sequences of token ids.

A .json or .jsonl file holds conversations: `{"conversations": [{"from": "user", "value": ...}, ...]}` as in the
original's fine-tuning data, or `{"messages": [{"role": ..., "content": ...}]}`. Each is rendered in the model's own
chat format and cut on the right, and turns before the first of the user are dropped, as in the original's run_gptq.py;
unlike there, text never becomes a control token. Anything else is plain text, cut into windows of equal length. Of
more samples than asked for, evenly spread ones are taken, so that all of the file is heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiloq.core.errors import FormatError, UsageError
from kiloq.core.files import read_bounded, shown
from kiloq.core.safe_json import parse

if TYPE_CHECKING:
    from kiloq.tokenize.tokenizer import Tokenizer

MAX_BYTES = 64 << 20
LEAST_TOKENS = 2  # of a sample: perplexity needs a next token
# ShareGPT's and the original's names of roles
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


def read_samples(path: Path, tokenizer: Tokenizer, length: int, limit: int) -> list[list[int]]:
    """At most `limit` samples of at most `length` tokens. Raises FormatError for a file without any."""
    data = read_bounded(path, MAX_BYTES)
    if path.suffix.lower() in (".json", ".jsonl"):
        samples = [conversation_ids(tokenizer, talk, length) for talk in conversations(data, path)]
    else:
        samples = windows(tokenizer, _text(data, path), length)
    samples = [ids for ids in samples if len(ids) >= LEAST_TOKENS]
    if not samples:
        raise FormatError(f"{path}: has no text to calibrate on or to measure with: give more")
    return spread(samples, limit)


def spread(samples: list[list[int]], limit: int) -> list[list[int]]:
    """`limit` of the samples, at equal distances; all where there are fewer."""
    if len(samples) <= limit:
        return samples
    return [samples[at * len(samples) // limit] for at in range(limit)]


def windows(tokenizer: Tokenizer, text: str, length: int) -> list[list[int]]:
    """The ids of a text in windows of `length`, each behind the token that begins a text where the model wants one."""
    first = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    ids, step = tokenizer.encode(text), length - len(first)
    cut = [first + ids[at : at + step] for at in range(0, len(ids), step)]
    return cut[:-1] if len(cut) > 1 and len(cut[-1]) < length else cut


def conversations(data: bytes, path: Path) -> list[list[dict[str, str]]]:
    """The conversations of a JSON list or of JSON lines, as message dicts."""
    if path.suffix.lower() == ".jsonl":
        lines = [line for line in data.splitlines() if line.strip()]
        rows = [parse(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]
    else:
        rows = parse(data, path)
    if not isinstance(rows, list):
        raise FormatError(f"{path}: holds no list of conversations")
    return [_messages(row, f"{path}: conversation {number}") for number, row in enumerate(rows, 1)]


def conversation_ids(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], length: int) -> list[int]:
    """A conversation in the model's chat format, cut on the right."""
    return tokenizer.chat(messages, add_generation_prompt=False)[:length]


def _messages(row: Any, where: str) -> list[dict[str, str]]:
    """The messages of one conversation; a system message stays, other turns before the user's first are dropped."""
    holder = row if isinstance(row, dict) else {}
    turns, role_key, text_key = holder.get("conversations"), "from", "value"
    if turns is None:
        turns, role_key, text_key = holder.get("messages"), "role", "content"
    if not isinstance(turns, list):
        raise FormatError(f"{where} has neither 'conversations' nor 'messages', which would be a list of turns")
    found = []
    for turn in turns:
        role, text = (turn.get(role_key), turn.get(text_key)) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or role not in ROLES or not isinstance(text, str):
            raise FormatError(f"{where} has a turn {shown(turn)}: it needs '{role_key}' ({', '.join(ROLES)}) and text")
        found.append({"role": ROLES[role], "content": text})
    system = [message for message in found[:1] if message["role"] == "system"]
    users = [at for at, message in enumerate(found) if message["role"] == "user"]
    return system + found[users[0] :] if users else system


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None


def check_length(length: int, train_length: int) -> int:
    """The samples' length, no more than the model was trained for."""
    if length < LEAST_TOKENS:
        raise UsageError(f"--length is {length}: samples have at least {LEAST_TOKENS} tokens")
    return min(length, train_length)
