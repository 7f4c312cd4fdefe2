"""Typing a question: one prompt_toolkit session with history, several lines, pasted text and completion.

Enter sends; Alt-Enter, or a backslash at the end of the line, starts another line; pasted newlines stay (bracketed
paste). Width of Chinese characters, NO_COLOR and dumb terminals are prompt_toolkit's business. While an answer
streams, `quiet_keyboard` keeps what is typed from appearing in the middle of it.
"""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from kiloq.chat.commands import COMMANDS, NAMES
from kiloq.chat.session import SETTINGS


class Reader:
    """Reads questions from the terminal, one at a time."""

    def __init__(self, prompt: str, history: Path | None) -> None:
        self._prompt = prompt
        self._left_text = False
        self._session: PromptSession[str] = PromptSession(
            history=_KeptHistory(str(history)) if history else InMemoryHistory(),
            multiline=True,
            prompt_continuation=lambda width, line, wrapped: "" if wrapped else ".".rjust(width - 1) + " ",
            completer=CommandCompleter(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            key_bindings=self._keys(),
        )

    def read(self) -> str:
        """The next question. Raises EOFError (Ctrl-D) or KeyboardInterrupt (Ctrl-C with nothing typed)."""
        while True:
            try:
                text = self._session.prompt(self._prompt)
            except KeyboardInterrupt:
                if not self._left_text:
                    raise
                continue  # as in a shell: the line is abandoned, the next one is fresh
            return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        def _interrupt(event: KeyPressEvent) -> None:
            self._left_text = bool(event.current_buffer.text)
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

        return keys


class _KeptHistory(FileHistory):
    """A history file that never ends the conversation: a full disk or bytes that are no UTF-8 are passed over."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string.encode("utf-8", "replace").decode("utf-8"))


class CommandCompleter(Completer):
    """Completes commands, the settings of `:conf` and the files of `/save` and `/load`."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        if not before or before[0] not in ":/" or "\n" in before:
            return
        word, blank, rest = before[1:].partition(" ")
        if not blank:
            names = [name for command in COMMANDS for name in command.names if name.startswith(word.lower())]
            yield from (Completion(name, start_position=-len(word)) for name in names)
        elif word in NAMES and NAMES[word].arguments == "FILE":
            yield from self._paths.get_completions(Document(rest), complete_event)
        elif word == "conf":
            last = rest.rpartition(" ")[2]
            found = [name for name in (*SETTINGS, "seed") if name.startswith(last)]
            yield from (Completion(name + "=", start_position=-len(last)) for name in found)


def history_file(folder: Path) -> Path:
    """The history file in `folder`, readable by its owner only; makes both. Raises OSError where it cannot."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "chat_history"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    path.chmod(0o600)
    return path


@contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Do not echo keys while an answer streams; what was typed is there at the next prompt."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(terminal, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
