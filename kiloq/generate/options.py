"""What `kiloq generate` and `kiloq chat` share on the command line: the sampling options, opening a model, one line
of timings.

An option that is not given is not passed on, so that the model's own generation defaults hold. Values are checked by
`SamplingParams` before the model is loaded: a wrong number is answered at once, not after a minute of loading.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kiloq.core.display import can_draw, neutralise
from kiloq.core.errors import UsageError
from kiloq.generate.params import SamplingParams

if TYPE_CHECKING:
    from kiloq.generate.model import Model
    from kiloq.generate.records import Timings

Command = TypeVar("Command", bound=Callable[..., Any])

_SAMPLING: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--temperature",), {"type": float, "help": "Randomness; 0 always takes the likeliest token."}),
    (("--top-k",), {"type": int, "help": "Keep the K likeliest tokens; 0 keeps all."}),
    (("--top-p",), {"type": float, "help": "Keep the likeliest tokens that together reach P."}),
    (("--min-p",), {"type": float, "help": "Keep tokens at least P times as likely as the likeliest."}),
    (("--repetition-penalty",), {"type": float, "help": "Above 1: tokens already there become unlikelier."}),
    (("--presence-penalty",), {"type": float, "help": "Taken off the logit of every token already generated."}),
    (("--frequency-penalty",), {"type": float, "help": "The same, once for each time it was generated."}),
    (("--logit-bias",), {"multiple": True, "metavar": "ID=BIAS", "help": "Added to a token's logit; repeatable."}),
    (("--seed",), {"type": int, "help": "The same seed and options give the same text."}),
    (("--stop",), {"multiple": True, "metavar": "TEXT", "help": "End before this text; repeatable."}),
    (("--stop-id", "stop_ids"), {"multiple": True, "type": int, "help": "End at this token; repeatable."}),
    (("--max-new-tokens",), {"type": int, "help": "Length limit of the answer in tokens."}),
    (("--min-new-tokens",), {"type": int, "help": "Do not end before this many tokens."}),
    (("--ignore-eos",), {"is_flag": True, "default": None, "help": "Go on past the model's own end tokens."}),
    (("--ntk",), {"metavar": "MODE", "help": "Rotary base beyond the training length: exact (default) or frozen."}),
)


def sampling_options(*, without: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Add one click option per sampling field; `given` collects what was typed."""

    def add(command: Command) -> Command:
        for names, attributes in reversed(_SAMPLING):
            if names[-1].removeprefix("--") not in without:
                command = click.option(*names, **attributes)(command)
        return command

    return add


_LOADING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--weights", {"default": "auto", "metavar": "KIND", "help": "auto (as stored), fp32, bf16, fp16, int8 or int4."}),
    ("--kv", {"default": "auto", "metavar": "KIND", "help": "Key/value cache: auto, fp32, bf16, fp16 or int8."}),
    ("--device", {"default": "auto", "metavar": "NAME", "help": "auto, cpu, or a torch device such as cuda:0."}),
    ("--engine", {"default": "auto", "metavar": "NAME", "help": "auto, native (CPU) or torch."}),
    ("--threads", {"default": 0, "type": int, "help": "Of the native engine; 0: all cores that may be used."}),
    ("--packed", {"metavar": "FILE", "help": "Keep the packed weights in FILE and map them the next time."}),
)


def model_options(command: Command) -> Command:
    """Add the options of loading; the command takes them as `**options` and hands them to `open_model`."""
    for name, attributes in reversed(_LOADING):
        command = click.option(name, show_default=True, **attributes)(command)
    return command


def loading(options: dict[str, Any]) -> dict[str, Any]:
    """Takes what `model_options` added out of a command's options."""
    return {name: options.pop(name) for name in (option.removeprefix("--") for option, _ in _LOADING)}


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The sampling fields that were typed, checked. Raises UsageError for a value out of range."""
    typed = {name: value for name, value in options.items() if value is not None and value != ()}
    if "logit_bias" in typed:
        typed["logit_bias"] = dict(_bias(text) for text in typed["logit_bias"])
    SamplingParams().override(**typed)
    return typed


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the one that was probably meant, or all of them."""
    from difflib import get_close_matches

    names = list(known)
    near = get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else "use one of " + ", ".join(names)


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise UsageError(f"--logit-bias is '{text}': write a token id, '=' and a number, such as 1234=-5") from None


def token_keys(bias: dict[str, Any]) -> dict[Any, Any]:
    """`logit_bias` as JSON writes it, with token ids as numbers again; SamplingParams checks the rest."""
    return {int(key) if re.fullmatch("[0-9]{1,10}", key) else key: value for key, value in bias.items()}


def open_model(name: str, **options: Any) -> Model:
    """Load a model by name, folder or file, with the options of `load`.

    Says on stderr what happens where a person looks on, and what to know.
    """
    from kiloq.generate.load import load

    with _loading(name) as progress:
        model = load(name, progress=progress, **options)
    for warning in model.warnings:
        click.echo(f"kiloq: {neutralise(warning)}", err=True)
    return model


def _loading(name: str) -> AbstractContextManager[Callable[[str], None] | None]:
    if not can_draw(sys.stderr):
        return nullcontext(None)
    from kiloq.generate.progress import spinner

    return spinner(f"loading {name}")


def timing_line(timings: Timings) -> str:
    """One line for people: `prefill 12 tokens in 0.10 s (120.0 tokens/s), decode ...`."""
    parts = [
        f"{phase} {tokens} tokens in {seconds:.2f} s ({tokens / seconds if seconds else 0.0:.1f} tokens/s)"
        for phase, tokens, seconds in (
            ("prefill", timings.prefill_tokens, timings.prefill_s),
            ("decode", timings.decode_tokens, timings.decode_s),
        )
    ]
    return ", ".join(parts)


def one_line_json(record: dict[str, Any]) -> str:
    """`record` as one line of JSON in readable UTF-8. Lone surrogates are escaped: the line is always valid UTF-8."""
    line = json.dumps(record, ensure_ascii=False)
    return line.encode("utf-8", "backslashreplace").decode("utf-8")
