"""The `kiloq` command: a table of verbs, each imported only when it is called, and one place where errors become words.

`kiloq --help` prints the table without importing any verb, so it starts in the time that click takes. Whatever a verb
raises ends here: a `KiloqError` as its one sentence on stderr and its exit code, bad usage as 2, Ctrl-C as 130, a
closed pipe (`| head`) quietly as 141 (128 + SIGPIPE, what a shell reports for other programs), anything else as a
sentence that asks to run again with `--debug`. That option works before and after the verb and is the environment
variable `KILOQ_DEBUG` for everything below.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from kiloq import __version__
from kiloq.core.display import neutralise
from kiloq.core.errors import KiloqError, file_sentence


class Verb(NamedTuple):
    """Where a command lives and its line in `kiloq --help`."""

    module: str
    attribute: str
    help: str


VERBS = {
    "chat": Verb("kiloq.chat.command", "chat_command", "Talk with a model in the terminal."),
    "generate": Verb("kiloq.generate.command", "generate_command", "Continue a prompt, or answer a file of prompts."),
    "tokenize": Verb("kiloq.tokenize.command", "command", "Show tokens; train, extend and compare vocabularies."),
    "prepare": Verb(
        "kiloq.prepare.command", "prepare_command", "Make a clean corpus from raw files, as a recipe says."
    ),
    "prepare classifier": Verb(
        "kiloq.prepare.command_models", "train_classifier_command", "Train a filter that tells good text from bad."
    ),
    "prepare perplexity": Verb(
        "kiloq.prepare.command_models", "train_perplexity_command", "Train an n-gram language model as a filter."
    ),
    "prepare mix-search": Verb(
        "kiloq.prepare.mix_search.command", "mix_search_command", "Propose the shares of a corpus' sources."
    ),
    "train": Verb("kiloq.train.command", "train_command", "Train a model from scratch, or go on with one."),
    "convert": Verb("kiloq.convert.command", "convert_command", "Write a model in another format."),
    "quantize": Verb("kiloq.quantize.command", "quantize_command", "Make a model smaller: 4- or 8-bit integers."),
    "get": Verb("kiloq.convert.command", "get_command", "Fetch a model or vocabulary by name."),
    "show": Verb("kiloq.convert.command", "show_command", "Print what a model, tokenizer or file is."),
    "serve": Verb("kiloq.serve.command", "serve_command", "Serve a model over HTTP: OpenAI, DashScope, a web page."),
    "bench": Verb("kiloq.generate.bench", "bench_command", "Measure how fast this machine runs a model."),
    "bench serve": Verb("kiloq.serve.bench", "bench_serve_command", "Measure a running server under load."),
    "doctor": Verb("kiloq.generate.doctor", "doctor_command", "Report what this machine offers and what is missing."),
}

EPILOG = """\b
Start here:
  kiloq get smollm2     fetch a small chat model, once
  kiloq chat smollm2    talk with it

\b
Completion of verbs and options in the shell (put the line into its start-up file):
  bash  eval "$(_KILOQ_COMPLETE=bash_source kiloq)"
  zsh   eval "$(_KILOQ_COMPLETE=zsh_source kiloq)"
  fish  _KILOQ_COMPLETE=fish_source kiloq | source
"""


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        os.environ["KILOQ_DEBUG"] = "1"


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help="Show the traceback of an error."
    )


def _add_debug_option(command: click.Command) -> None:
    """Let `--debug` stand after the verb too, and after the verbs of a verb."""
    if not any(param.name == "debug" for param in command.params):
        command.params.append(_debug_option())
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _add_debug_option(child)


class LazyGroup(click.Group):
    """A click group whose commands are rows of `VERBS`: listing them imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        from importlib import import_module

        verb = VERBS[cmd_name]
        command: click.Command = getattr(import_module(verb.module), verb.attribute)
        _add_debug_option(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, two = args[0], " ".join(args[:2])
        if len(args) > 1 and two in VERBS:
            return two, self.get_command(ctx, two), args[2:]
        if name in VERBS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(name, VERBS, n=1, cutoff=0.6)
        hint = f"did you mean '{near[0]}'?" if near else "the commands are " + ", ".join(VERBS) + "."
        raise click.UsageError(f"there is no command '{name}': {hint}", ctx)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        from click.shell_completion import CompletionItem

        verbs = [CompletionItem(name, help=verb.help) for name, verb in VERBS.items() if name.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"kiloq {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The Qwen system of 2023: models from raw text to a chat in your terminal.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """The root of all verbs."""


cli.params.append(_debug_option())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; default: `sys.argv[1:]`) and return its exit code."""
    _start_quickly()
    _prepare_streams()
    if instruction := os.environ.get("_KILOQ_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "kiloq", "_KILOQ_COMPLETE", instruction)
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv))
    except BrokenPipeError:
        code = 141
    try:
        sys.stdout.flush()  # a closed pipe or a full disk is noticed here, not in the interpreter's last breath
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        return code or _report(f"kiloq: {file_sentence(error)}", 1)
    return code


def _start_quickly() -> None:
    """Settings of the process that together save a tenth of a second of a short command."""
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # NumPy's idle threads sleep at once, not after a long spin
    gc.set_threshold(50_000)  # start-up makes 100,000 objects that stay: looking for garbage among them is in vain
    atexit.register(gc.freeze)  # ... and at the end too


def _prepare_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the caller has closed it, as `<&-` does
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (open to the end)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" instead of ending the program


def _run(arguments: list[str]) -> int:
    try:
        with cli.make_context("kiloq", arguments) as ctx:
            cli.invoke(ctx)
            return 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _report(_usage_sentence(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\n")  # ends the line on which the terminal has put ^C
        return 130
    except BrokenPipeError:
        raise
    except KiloqError as error:
        return _report(f"kiloq: {error}", error.exit_code)
    except OSError as error:
        return _report(f"kiloq: {file_sentence(error)}", 1)
    except Exception as error:
        reason = " ".join(str(error).split())
        return _report(
            f"kiloq: this should not have happened ({type(error).__name__}: {reason}): "
            "run it again with --debug and report the traceback",
            1,
        )


def _usage_sentence(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx else "kiloq"
    message = " ".join(error.format_message().split()).removesuffix(".")
    return f"{path}: {message} (see {path} --help)"


def _report(sentence: str, code: int) -> int:
    if os.environ.get("KILOQ_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exc()
    else:
        sentence = sentence.replace("\n", "\\n")  # a file's name can have one
    click.echo(neutralise(sentence), err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
