"""`kiloq chat MODEL`: the command line of the chat; the loop itself is in `terminal.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from kiloq.generate.options import given, loading, model_options, open_model, sampling_options


@click.command("chat")
@click.argument("model")
@click.option("--system", metavar="TEXT", help="System message; default: the model's own.")
@click.option("-s", "--seed", type=int, help="Every answer starts from it; default: 1234.")
@click.option("--load", "conversation", metavar="FILE", help="Continue a conversation that /save wrote.")
@click.option("--cpu-only", is_flag=True, help="The same as --device cpu.")
@click.option("--lang", type=click.Choice(["en", "zh"]), help="Language of the terminal's own sentences; default: the locale's.")  # fmt: skip
@click.option("--verbose", is_flag=True, help="Print tokens per second after every answer.")
@model_options
@sampling_options(without=("seed",))
def chat_command(
    model: str,
    system: str | None,
    seed: int | None,
    conversation: str | None,
    cpu_only: bool,
    lang: str | None,
    verbose: bool,
    **options: Any,
) -> None:
    """Talk with MODEL: a name (see `kiloq get`), a folder or a .gguf file.

    In a terminal, :help lists the commands. Without one, every line of stdin is a question:

    \b
      echo "What is the capital of France?" | kiloq chat smollm2
    """
    from kiloq.chat.commands import Chat
    from kiloq.chat.messages import LANGUAGES, choose_language
    from kiloq.chat.session import Session
    from kiloq.chat.terminal import run_chat

    how = loading(options) | ({"device": "cpu"} if cpu_only else {})
    settings = given({**options, "seed": seed})
    session = Session() if conversation is None else Session.load(Path(conversation))
    session.seed = settings.pop("seed", session.seed)
    session.system = session.system if system is None else system
    session.settings |= settings
    loaded = open_model(model, **how)
    chat = Chat(loaded, session, LANGUAGES[choose_language(lang, os.environ)], dict(session.settings))
    raise click.exceptions.Exit(run_chat(chat, verbose=verbose))
