"""The loop of a chat: read a line, run a command or stream an answer, until the end of input.

With a terminal on both sides, prompt_toolkit reads and Ctrl-C stops the answer but not the chat. Without one, every
line of stdin is a question and stdout carries the answers and nothing else, so that a chat can stand in a pipe.
Answers are plain text as it comes: Markdown rendered while it grows flickers and miscounts the width of Chinese.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import TYPE_CHECKING

from kiloq.chat.commands import Call, Chat, Outcome, read_line, run_command
from kiloq.core.display import can_draw, is_terminal, neutralise, wants_colour
from kiloq.core.errors import KiloqError
from kiloq.core.paths import state_dir
from kiloq.core.wrap import for_stream
from kiloq.generate.options import timing_line

if TYPE_CHECKING:
    from kiloq.generate.records import Completion


class Screen:
    """Where text goes: answers to stdout, notes beside them (on a terminal) or to stderr (in a pipe)."""

    def __init__(self, interactive: bool) -> None:
        self._prepare = for_stream(sys.stdout)
        self._interactive = interactive

    def piece(self, text: str) -> None:
        """A part of an answer, shown at once."""
        sys.stdout.write(self._prepare(text))
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """What was asked for: an answer's end, or what a command prints."""
        self.piece(text + "\n")

    def note(self, text: str) -> None:
        """What belongs to no answer."""
        self._aside(text, "dim")

    def problem(self, text: str) -> None:
        """One sentence about what went wrong."""
        self._aside(text if self._interactive else f"kiloq: {text}", "red")

    def clear(self) -> None:
        """Empty the terminal, where there is one that can."""
        if can_draw(sys.stdout):
            sys.stdout.write("\x1b[H\x1b[2J")  # cursor home, erase display: ECMA-48
            sys.stdout.flush()

    def _aside(self, text: str, style: str) -> None:
        stream = sys.stdout if self._interactive else sys.stderr
        if not (self._interactive and wants_colour(stream)):
            stream.write(neutralise(text) + "\n")
            return
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False, soft_wrap=True).print(Text(neutralise(text), style=style))


class Conversation:
    """One run of the loop."""

    def __init__(self, chat: Chat, *, interactive: bool, verbose: bool) -> None:
        self.chat = chat
        self.screen = Screen(interactive)
        self._interactive = interactive
        self._verbose = verbose
        self._told_left_out = 0
        self.failed = False

    def take(self, line: str) -> bool:
        """Act on one line; False when it was the command to leave."""
        if not line.strip():
            return True
        meaning = read_line(line)
        try:
            if not isinstance(meaning, Call):
                self.answer(meaning)
                return True
            outcome = self._run_command(meaning)
        except KiloqError as error:
            self.failed |= not isinstance(meaning, Call)
            self.screen.problem(str(error))
            return True
        return self._show(outcome)

    def _run_command(self, call: Call) -> Outcome:
        """An OSError here is about the command's file; one of the screen or of stdout ends the chat."""
        try:
            return run_command(self.chat, call)
        except OSError as error:
            raise KiloqError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None

    def answer(self, question: str) -> None:
        """Stream one answer and keep it; Ctrl-C ends it early and keeps what there is."""
        chat, session = self.chat, self.chat.session
        settings = session.sampling()
        most = chat.model.defaults.override(**settings).max_new_tokens
        messages, left_out = session.fit(question, chat.model.tokenizer, chat.model.config.max_length, most)
        self._tell_left_out(left_out)
        stream = chat.model.stream_chat(messages, **settings)
        with self._while_answering(), stream:
            try:
                for piece in stream:
                    self.screen.piece(piece)
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                stream.cancel()
                for piece in stream:  # what was ready when the key came: it is in the history, so it is shown
                    self.screen.piece(piece)
        completion = stream.completion
        self.screen.say("")
        session.record(question, completion.text, interrupted=completion.finish_reason == "cancelled")
        self._tell_end(completion)

    def _while_answering(self) -> AbstractContextManager[None]:
        return answering_terminal() if self._interactive else nullcontext()

    def _tell_left_out(self, count: int) -> None:
        if count and count != self._told_left_out:
            self.screen.note(self.chat.texts.left_out.format(count=count))
        self._told_left_out = count

    def _tell_end(self, completion: Completion) -> None:
        texts, context = self.chat.texts, self.chat.model.config.max_length
        if completion.finish_reason == "cancelled":
            self.screen.note(texts.interrupted if completion.text else texts.withdrawn)
        elif completion.finish_reason == "length" and completion.usage.total_tokens >= context:
            self.screen.note(texts.cut_by_context.format(context=context))
        elif completion.finish_reason == "length":
            count = completion.usage.completion_tokens
            self.screen.note(texts.cut_by_limit.format(count=count, more=2 * count))
        if self._verbose:
            self.screen.note(timing_line(completion.timings))

    def _show(self, outcome: Outcome) -> bool:
        if outcome.action == "clear":
            self.screen.clear()
        if outcome.text:
            self.screen.say(outcome.text)
        return outcome.action != "leave"


def run_chat(chat: Chat, *, verbose: bool = False) -> int:
    """Chat until the input ends; returns the exit code (1: in a pipe, a line could not be answered)."""
    if is_terminal(sys.stdin) and is_terminal(sys.stdout):
        return _run_terminal(Conversation(chat, interactive=True, verbose=verbose))
    return _run_pipe(Conversation(chat, interactive=False, verbose=verbose))


def _run_pipe(conversation: Conversation) -> int:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            conversation.screen.problem(conversation.chat.texts.bad_line.format(number=number))
            conversation.failed = True
            continue
        if not conversation.take(text):
            break
    return 1 if conversation.failed else 0


def _run_terminal(conversation: Conversation) -> int:
    from kiloq.chat.reader import Reader, history_file

    chat, screen = conversation.chat, conversation.screen
    try:
        history = history_file(state_dir())
    except OSError as error:
        history = None
        screen.note(chat.texts.no_history_file.format(error=error))
    reader = Reader(chat.texts.prompt, history)
    model = chat.model
    about = {"name": model.name, "dtype": model.dtype, "device": model.device, "context": model.config.max_length}
    screen.note(chat.texts.ready.format(**about))
    hinted = False
    while True:
        try:
            line = reader.read()
        except EOFError:
            break
        except KeyboardInterrupt:
            if hinted:
                break
            hinted = True
            screen.note(chat.texts.hint_leave)
            continue
        hinted = False
        try:
            if not conversation.take(line):
                break
        except KeyboardInterrupt:  # before the first step of the answer
            screen.note(chat.texts.withdrawn)
    screen.note(chat.texts.bye)
    return 0


@contextmanager
def answering_terminal() -> Iterator[None]:
    """While an answer streams: the first Ctrl-C raises KeyboardInterrupt, further ones do nothing until it has ended,
    so that an impatient second press does not end the chat."""
    from kiloq.chat.reader import quiet_keyboard

    pressed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if not pressed:
            pressed = True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with quiet_keyboard():
            yield
    finally:
        signal.signal(signal.SIGINT, before)
