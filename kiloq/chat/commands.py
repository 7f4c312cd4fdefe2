"""The commands of a chat: Qwen's own (`:help :seed :conf ...` of cli_demo.py) and a few more, with ':' or '/'.

Unlike in the original, `:conf` takes effect, its values are literals and never evaluated, and a line that looks like a
command but is none is answered with a hint instead of being sent to the model. A line is a command when its sign is
followed by a word of Latin letters that ends at a blank or at the end; everything else is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Literal

from kiloq.chat.messages import Texts
from kiloq.chat.session import SETTINGS, Session, check_settings
from kiloq.chat.settings import parse_assignments
from kiloq.core.errors import UsageError

if TYPE_CHECKING:
    from kiloq.generate.model import Model

# Full-width signs come from Chinese input methods.
_COMMAND = re.compile(r"(?P<sign>[:/：／])(?P<word>[A-Za-z][A-Za-z0-9_-]*)?(?P<rest>\s.*)?", re.DOTALL)
MAX_SEED = (1 << 64) - 1
NARROW_COLUMNS = 80  # :help puts names and explanations on lines of their own below it


@dataclass
class Chat:
    """What commands act on."""

    model: Model
    session: Session
    texts: Texts
    start_settings: dict[str, Any]  # those of the command line, for :reset-conf


@dataclass(frozen=True)
class Outcome:
    """What the terminal does after a command."""

    text: str = ""
    action: Literal["stay", "leave", "clear"] = "stay"


@dataclass(frozen=True)
class Command:
    """One row of the table."""

    names: tuple[str, ...]  # the first is the full one
    arguments: str  # as :help shows them; empty: none are taken
    run: Callable[[Chat, str], Outcome]


@dataclass(frozen=True)
class Call:
    """A line that is a command, or looks like one."""

    sign: str
    word: str
    rest: str


def read_line(line: str) -> Call | str:
    """What a typed line means: a call, or the text to send."""
    text = line.strip()
    if call := _call(text):
        return call
    if text[:1] and text[:1] == text[1:2] and _call(text[1:]):
        return text[1:]  # the doubled sign: the text as it stands after the first
    return line


def _call(text: str) -> Call | None:
    match = _COMMAND.fullmatch(text)
    if not match or (match["word"] is None and match["rest"]):
        return None
    call = Call(match["sign"], match["word"] or "", (match["rest"] or "").strip())
    if "\n" in text and call.word.lower() not in NAMES:
        return None  # pasted code such as ":root {" and its next lines
    return call


def run_command(chat: Chat, call: Call) -> Outcome:
    """Run it. Raises KiloqError or OSError with the sentence to show; the chat is then as before."""
    texts, where = chat.texts, {"sign": call.sign, "word": call.word}
    if not call.word:
        raise UsageError(texts.lone_sign.format(**where))
    command = NAMES.get(call.word.lower())
    if command is None:
        near = get_close_matches(call.word.lower(), NAMES, n=1, cutoff=0.6)
        sentence = texts.unknown_command_near if near else texts.unknown_command
        raise UsageError(sentence.format(**where, near=near[0] if near else ""))
    if call.rest and not command.arguments:
        raise UsageError(texts.no_arguments.format(**where, rest=call.rest))
    if command.arguments == "FILE" and not call.rest:
        raise UsageError(texts.needs_file.format(**where))
    return command.run(chat, call.rest)


def _help(chat: Chat, rest: str) -> Outcome:
    heads = [" ".join([*(":" + name for name in c.names), *([c.arguments] if c.arguments else [])]) for c in COMMANDS]
    width = max(map(len, heads))
    narrow = get_terminal_size().columns < NARROW_COLUMNS
    lines = []
    for head, command in zip(heads, COMMANDS, strict=True):
        about = chat.texts.help[command.names[0]]
        lines += [head, f"    {about}"] if narrow else [f"{head:{width}}  {about}"]
    return Outcome("\n".join([*lines, "", chat.texts.help_notes]))


def _exit(chat: Chat, rest: str) -> Outcome:
    return Outcome(action="leave")


def _clear(chat: Chat, rest: str) -> Outcome:
    return Outcome(action="clear")


def _clear_history(chat: Chat, rest: str) -> Outcome:
    chat.session.turns.clear()
    return Outcome(chat.texts.history_cleared)


def _history(chat: Chat, rest: str) -> Outcome:
    lines, speaker = [], Path(chat.model.name).name
    for turn in chat.session.turns:
        mark = f" {chat.texts.mark_interrupted}" if turn.interrupted else ""
        lines += [f"{chat.texts.prompt}{turn.question}", f"{speaker}> {turn.answer}{mark}"]
    return Outcome("\n".join(lines) or chat.texts.history_empty)


def _seed(chat: Chat, rest: str) -> Outcome:
    if rest:
        if not re.fullmatch("[0-9]{1,20}", rest) or int(rest) > MAX_SEED:
            raise UsageError(chat.texts.bad_seed.format(text=rest))
        chat.session.seed = int(rest)
    return Outcome(chat.texts.seed_is.format(seed=chat.session.seed))


def _conf(chat: Chat, rest: str) -> Outcome:
    changes = parse_assignments(rest, chat.texts)
    seed = changes.pop("seed", chat.session.seed)
    settings = {**chat.session.settings, **changes}
    check_settings(settings)
    _seed(chat, str(seed))
    chat.session.settings = settings
    effective = chat.model.defaults.override(**settings)
    lines = [
        f"{'*' if name in settings else ' '} {name} = {json.dumps(getattr(effective, name), ensure_ascii=False)}"
        for name in (changes if rest else SETTINGS)
    ]
    lines.append(f"  {chat.texts.seed_is.format(seed=chat.session.seed)}")
    return Outcome("\n".join([*lines, chat.texts.conf_changed] if not rest else lines))


def _reset_conf(chat: Chat, rest: str) -> Outcome:
    chat.session.settings = dict(chat.start_settings)
    return Outcome(chat.texts.conf_reset)


def _undo(chat: Chat, rest: str) -> Outcome:
    turn = chat.session.undo()
    return Outcome(chat.texts.undone.format(question=turn.question) if turn else chat.texts.history_empty)


def _save(chat: Chat, rest: str) -> Outcome:
    path = Path(rest).expanduser()
    chat.session.save(path)
    return Outcome(chat.texts.saved.format(count=len(chat.session.turns), path=path))


def _load(chat: Chat, rest: str) -> Outcome:
    path = Path(rest).expanduser()
    chat.session = Session.load(path)
    return Outcome(chat.texts.loaded.format(count=len(chat.session.turns), path=path))


def _system(chat: Chat, rest: str) -> Outcome:
    if rest:
        chat.session.system = None if rest == "-" else rest
        return Outcome(chat.texts.system_default if rest == "-" else chat.texts.system_set)
    if chat.session.system is None:
        return Outcome(chat.texts.system_default)
    return Outcome(chat.texts.system_is.format(system=chat.session.system))


def _tokens(chat: Chat, rest: str) -> Outcome:
    messages, context = chat.session.messages(), chat.model.config.max_length
    used = len(chat.model.tokenizer.chat(messages)) if messages else 0
    turns = len(chat.session.turns)
    return Outcome(chat.texts.tokens.format(used=used, context=context, turns=turns, free=max(context - used, 0)))


COMMANDS = (
    Command(("help", "h"), "", _help),
    Command(("exit", "quit", "q"), "", _exit),
    Command(("clear", "cl"), "", _clear),
    Command(("clear-his", "clear-history", "clh"), "", _clear_history),
    Command(("history", "his"), "", _history),
    Command(("seed",), "[N]", _seed),
    Command(("conf",), "[name=value ...]", _conf),
    Command(("reset-conf",), "", _reset_conf),
    Command(("undo",), "", _undo),
    Command(("save",), "FILE", _save),
    Command(("load",), "FILE", _load),
    Command(("system",), "[TEXT]", _system),
    Command(("tokens",), "", _tokens),
)
NAMES = {name: command for command in COMMANDS for name in command.names}
