"""`kiloq generate MODEL PROMPT`: one completion that streams to stdout, one JSON object, or a file of prompts.

stdout carries the text or the JSON and nothing else. A batch goes on past lines that cannot be answered: each gets a
record with its `error`, and the exit code is 1 at the end. A batch's `--out FILE` is written under the name
`FILE.partial` and renamed when the last line is done, so that a file of that name is always whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import click

from kiloq.core.display import can_draw, is_terminal
from kiloq.core.errors import KiloqError, UsageError
from kiloq.core.files import check_target
from kiloq.core.wrap import for_stream
from kiloq.generate.arguments import conversation
from kiloq.generate.options import (
    given,
    loading,
    model_options,
    nearest,
    one_line_json,
    open_model,
    sampling_options,
    timing_line,
    token_keys,
)
from kiloq.generate.params import SamplingParams
from kiloq.tokenize.chatml import Message

if TYPE_CHECKING:
    from kiloq.generate.model import Model
    from kiloq.generate.records import Completion

_LINE_FIELDS = ("id", "prompt", "messages", "system")


@click.command("generate")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--batch", metavar="FILE", help="JSON lines with prompt or messages, id and sampling fields; - is stdin.")
@click.option("--out", metavar="FILE", help="Where the answers to --batch go; default: stdout.")
@click.option("--chat/--raw", default=False, help="Treat the prompt as a user's message, or continue it (default).")
@click.option("--system", metavar="TEXT", help="System message; needs --chat or --batch.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with text, ids, usage and timings.")
@click.option("--verbose", is_flag=True, help="Print tokens per second on stderr.")
@click.option("-n", "--n", type=int, help="Number of independent answers.")
@click.option("--logprobs", type=int, metavar="K", help="With --json: log-probabilities, and those of the K likeliest.")
@model_options
@sampling_options()
def generate_command(
    model: str,
    prompt: str | None,
    batch: str | None,
    out: str | None,
    chat: bool,
    system: str | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Continue PROMPT with MODEL (a name, a folder or a .gguf file). PROMPT '-' is read from stdin.

    \b
    Examples:
      kiloq generate smollm2 "The capital of France is" --temperature 0
      echo "1 + 1 =" | kiloq generate smollm2 - --max-new-tokens 8
      kiloq generate smollm2 --batch prompts.jsonl --out answers.jsonl
    """
    how = loading(options)
    sampling = given(options)
    _check(prompt, batch, out, chat, system, as_json, sampling)
    if batch is not None:
        with _batch_input(batch) as lines, _batch_output(out, batch) as sink:
            loaded = open_model(model, **how)
            failed = _run_batch(loaded, lines, sink, {"system": system} if system is not None else {}, sampling)
        raise click.exceptions.Exit(1 if failed else 0)
    text = _prompt_text(prompt)
    loaded = open_model(model, **how)
    completions = _answer(loaded, text, chat, system, sampling, show=not as_json)
    if as_json:
        click.echo(one_line_json(_record(loaded, completions)))
    if verbose:
        for completion in completions:
            click.echo(timing_line(completion.timings), err=True)


def _check(
    prompt: str | None,
    batch: str | None,
    out: str | None,
    chat: bool,
    system: str | None,
    as_json: bool,
    sampling: dict[str, Any],
) -> None:
    if batch is not None and (prompt is not None or as_json or chat):
        raise UsageError("--batch takes its prompts from the file and writes JSON lines: leave out PROMPT, --chat and --json")  # fmt: skip
    if batch is None and out is not None:
        raise UsageError("--out belongs to --batch: send the text of one prompt where you want it with '>'")
    if batch is None and system is not None and not chat:
        raise UsageError("--system needs --chat: a raw completion has no system message")
    if batch is None and "logprobs" in sampling and not as_json:
        raise UsageError("--logprobs needs --json: plain text has no place for them")


def _prompt_text(prompt: str | None) -> str:
    """The prompt as typed, or all of stdin less the one newline that `echo` and editors put at its end."""
    if prompt is None and is_terminal(sys.stdin):
        raise UsageError("there is no prompt: write it after the model, or '-' to read it from stdin")
    if prompt is None or prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"stdin is not UTF-8 (byte {error.start}): convert it, for example with iconv") from None
        prompt = prompt.removesuffix("\n").removesuffix("\r")
    if not prompt:
        raise UsageError("the prompt is empty: write at least one character")
    return prompt


def _answer(
    model: Model, text: str, chat: bool, system: str | None, sampling: dict[str, Any], *, show: bool
) -> list[Completion]:
    messages = _messages(text, system) if chat else None
    if show and sampling.get("n", 1) == 1:
        stream = model.stream(text, **sampling) if messages is None else model.stream_chat(messages, **sampling)
        with stream:
            prepare = for_stream(sys.stdout)
            for piece in stream:
                sys.stdout.write(prepare(piece))
                sys.stdout.flush()
        sys.stdout.write("\n")
        return [stream.completion]
    answer = model.generate(text, **sampling) if messages is None else model.chat(messages, **sampling)
    completions = answer if isinstance(answer, list) else [answer]
    if show:
        for completion in completions:
            click.echo(f"--- {completion.index + 1} of {len(completions)}")
            click.echo(for_stream(sys.stdout)(completion.text))
    return completions


def _messages(text: str, system: str | None) -> list[dict[str, Any]]:
    start = [] if system is None else [{"role": "system", "content": system}]
    return [*start, {"role": "user", "content": text}]


def _record(model: Model, completions: list[Completion]) -> dict[str, Any]:
    if len(completions) == 1:
        return {"model": model.name, **completions[0].to_json()}
    return {"model": model.name, "completions": [completion.to_json() for completion in completions]}


@contextmanager
def _batch_input(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    path = Path(name)
    if not path.exists() or path.is_dir():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise UsageError(f"{path}: {what}: --batch takes a file of JSON lines, or - for stdin")
    with path.open("rb") as lines:
        yield lines


@contextmanager
def _batch_output(out: str | None, batch: str) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    target = Path(out)
    if batch != "-" and target.exists() and target.samefile(batch):
        raise UsageError(f"{target}: --out would overwrite the prompts of --batch: choose another name")
    if target.exists() and not target.is_file() and not target.is_dir():  # a pipe or device is written to as it is
        with target.open("w", encoding="utf-8") as sink:
            yield sink
        return
    check_target(target)
    target = target.resolve()  # a link such as /dev/stdout stays one
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as sink:
            yield sink
        partial.replace(target)
    except BaseException:
        if partial.exists() and partial.stat().st_size:
            click.echo(f"kiloq: stopped early: the answers so far are in {partial}", err=True)
        else:
            partial.unlink(missing_ok=True)
        raise


def _run_batch(model: Model, lines: BinaryIO, sink: TextIO, start: dict[str, Any], sampling: dict[str, Any]) -> int:
    """Answer every line in order; returns how many could not be answered. Blank lines are passed over."""
    from kiloq.core.safe_json import parse_object  # brings NumPy

    done = failed = 0
    shows_progress = can_draw(sys.stderr) and sink is not sys.stdout
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record: dict[str, Any] = {"line": number}
        try:
            request = parse_object(line, f"line {number}")
            if "id" in request:
                record["id"] = request["id"]
            record |= _record(model, _answer_line(model, start | request, sampling))
        except KiloqError as error:
            record["error"] = str(error)
            failed += 1
        sink.write(one_line_json(record) + "\n")
        sink.flush()
        done += 1
        if shows_progress:
            click.echo(f"\r{done} lines, {failed} of them failed", err=True, nl=False)
    if shows_progress:
        click.echo(err=True)
    if not done:
        raise UsageError('the batch has no lines: write one JSON object a line, such as {"prompt": "1 + 1 ="}')
    if failed:
        click.echo(f'kiloq: {failed} of {done} lines could not be answered: see the records with "error"', err=True)
    return failed


def _answer_line(model: Model, request: dict[str, Any], sampling: dict[str, Any]) -> list[Completion]:
    for name in request:
        if name not in (*_LINE_FIELDS, *SamplingParams.names()):
            raise UsageError(f"there is no field '{name}': {nearest(name, (*_LINE_FIELDS, *SamplingParams.names()))}")
    own = {name: value for name, value in request.items() if name not in _LINE_FIELDS}
    if isinstance(own.get("logit_bias"), dict):
        own["logit_bias"] = token_keys(own["logit_bias"])
    settings = sampling | own
    prompt, messages, system = (request.get(name) for name in ("prompt", "messages", "system"))
    if (prompt is None) == (messages is None):
        raise UsageError("the line needs either 'prompt' or 'messages'")
    if prompt is not None:
        if not isinstance(prompt, str) or not prompt:
            raise UsageError("'prompt' must be a text of at least one character")
        answer = model.generate(prompt, **settings)
    else:
        answer = model.chat(_line_messages(messages, system), **settings)
    return answer if isinstance(answer, list) else [answer]


def _line_messages(messages: object, system: object) -> Sequence[Message]:
    checked = conversation(messages)
    if system is None or checked[0].get("role") == "system":
        return checked
    if not isinstance(system, str):
        raise UsageError("'system' must be a text")
    return [{"role": "system", "content": system}, *checked]
