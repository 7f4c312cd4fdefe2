"""A conversation without a terminal: messages, system message, settings, what fits the context, save and load.

An interrupted answer stays in the history as far as it came, marked, because the next question often refers to it.
When the conversation outgrows the context, whole turns are left out from the oldest on, the system message and the
question never; the history keeps them, and whoever shows the answer is told how many were left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiloq.core.errors import FormatError, UsageError
from kiloq.core.files import atomic_file, read_bounded, shown
from kiloq.core.safe_json import parse_object
from kiloq.generate.options import nearest, token_keys
from kiloq.generate.params import SamplingParams
from kiloq.tokenize.window import fit

if TYPE_CHECKING:
    from kiloq.tokenize.tokenizer import Tokenizer

Message = dict[str, Any]

KIND = "kiloq conversation"
MAX_FILE_BYTES = 64 << 20  # ours: a context of a million tokens is about 5 MB
# A chat shows one answer as it comes, and its seed is a field of its own.
SETTINGS = tuple(name for name in SamplingParams.names() if name not in ("seed", "n", "logprobs"))


@dataclass(frozen=True)
class Turn:
    """One question and what the model answered."""

    question: str
    answer: str
    interrupted: bool = False


@dataclass
class Session:
    """The state of one conversation. `settings` are the sampling fields that differ from the model's defaults."""

    system: str | None = None  # None: the model's own
    seed: int = 1234  # the default of the original's cli_demo.py; every answer starts from it
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)

    def sampling(self) -> dict[str, Any]:
        """Keyword arguments for the model."""
        return {"seed": self.seed, **self.settings}

    def messages(self, question: str | None = None) -> list[Message]:
        """The conversation as OpenAI message dicts, with a new question at its end."""
        found: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            found += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return found if question is None else [*found, {"role": "user", "content": question}]

    def fit(self, question: str, tokenizer: Tokenizer, context: int, answer_tokens: int) -> tuple[list[Message], int]:
        """(messages, turns left out): the newest turns that leave room for the answer, of at most half the context.

        Raises ContextError with both numbers when the question and the system message alone do not fit.
        """
        budget = context - min(answer_tokens, context // 2)
        kept, dropped = fit(tokenizer, self.messages(question), budget)
        return [dict(message) for message in kept], len(dropped) // 2

    def record(self, question: str, answer: str, *, interrupted: bool) -> None:
        """Put a turn into the history. One that was stopped before its first character leaves no trace."""
        if answer or not interrupted:
            self.turns.append(Turn(question, answer, interrupted))

    def undo(self) -> Turn | None:
        """Take back the last turn."""
        return self.turns.pop() if self.turns else None

    def save(self, path: Path) -> None:
        """Write the conversation as JSON, complete or not at all; a file of another kind is not overwritten."""
        if path.exists():
            _read(path)
        shape = {
            "kind": KIND,
            "version": 1,
            "system": self.system,
            "seed": self.seed,
            "settings": self.settings,
            "turns": [{"question": t.question, "answer": t.answer, "interrupted": t.interrupted} for t in self.turns],
        }
        with atomic_file(path) as file:
            # ASCII only: escapes keep even a lone surrogate from a broken terminal intact
            file.write(json.dumps(shape, indent=1).encode("ascii") + b"\n")

    @classmethod
    def load(cls, path: Path) -> Session:
        """Read a saved conversation. Raises MissingError, or FormatError whose sentence starts with the path."""
        shape = _read(path)
        system, seed, settings, turns = (shape.get(name) for name in ("system", "seed", "settings", "turns"))
        if not (system is None or isinstance(system, str)):
            raise FormatError(f"{path}: 'system' is not a text: the file was changed by hand or is damaged")
        if not isinstance(settings, dict) or not isinstance(turns, list):
            raise FormatError(f"{path}: 'settings' or 'turns' is missing: the file is damaged")
        try:
            check_settings(settings)
            SamplingParams(seed=seed)
        except UsageError as error:
            raise FormatError(f"{path}: {error}") from None
        if not isinstance(seed, int):
            raise FormatError(f"{path}: 'seed' is not a whole number: the file was changed by hand or is damaged")
        return cls(system, seed, settings, [_turn(path, number, turn) for number, turn in enumerate(turns, 1)])


def check_settings(settings: dict[str, Any]) -> None:
    """Check names and values of settings, and turn the token ids of a `logit_bias` from JSON into numbers."""
    for name in settings:
        if name not in SETTINGS:
            raise UsageError(f"there is no setting {shown(name)} in a chat: {nearest(name, SETTINGS)}")
    if isinstance(settings.get("logit_bias"), dict):
        settings["logit_bias"] = token_keys(settings["logit_bias"])
    SamplingParams().override(**settings)


def _read(path: Path) -> dict[str, Any]:
    shape = parse_object(read_bounded(path, MAX_FILE_BYTES), path)
    if shape.get("kind") != KIND or shape.get("version") != 1:
        raise FormatError(f"{path}: is not a conversation saved by kiloq (version 1): choose another file")
    return shape


def _turn(path: Path, number: int, turn: object) -> Turn:
    if isinstance(turn, dict):
        question, answer, interrupted = turn.get("question"), turn.get("answer"), turn.get("interrupted", False)
        if isinstance(question, str) and isinstance(answer, str) and isinstance(interrupted, bool):
            return Turn(question, answer, interrupted)
    raise FormatError(f"{path}: turn {number} lacks a question or an answer: the file is damaged")
