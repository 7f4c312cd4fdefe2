"""`kiloq bench serve`: what clients of a running server see under load; see `load.py`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from kiloq.core.errors import KiloqError


@click.command("serve")
@click.option(
    "--url", default="http://127.0.0.1:8000", show_default=True, help="Of any server with /v1/chat/completions."
)
@click.option("--model", default="smollm2", show_default=True, help="The model's name in requests.")
@click.option("--requests", default=32, show_default=True, type=click.IntRange(1, 100_000), help="Requests in all.")
@click.option(
    "--concurrency", default=8, show_default=True, type=click.IntRange(1, 4096), help="Clients (closed loop)."
)
@click.option("--rate", default=0.0, type=click.FloatRange(0), help="Requests a second (open loop) instead.")
@click.option("--words", default=50, show_default=True, type=click.IntRange(1, 100_000), help="Of a prompt.")
@click.option(
    "--shared", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="Share of a prompt that all have."
)
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(1), help="Of an answer.")
@click.option(
    "--first", default=1.0, show_default=True, type=click.FloatRange(0), help="Goodput: s to the first token."
)
@click.option("--between", default=0.1, show_default=True, type=click.FloatRange(0), help="Goodput: s between tokens.")
@click.option("--api-key", "key", envvar="KILOQ_API_KEY", help="Or in KILOQ_API_KEY.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench_serve_command(as_json: bool, **options: Any) -> None:
    """Measure a running server: tokens a second, times to the first token, between tokens and to the end."""
    from kiloq.serve.load import Load, make_prompts, report, run

    load = Load(
        options["url"].rstrip("/"), options["model"], make_prompts(options["requests"], options["words"], options["shared"]),
        options["max_tokens"], options["concurrency"], options["rate"], options["key"],
        first_s=options["first"], between_s=options["between"],
    )  # fmt: skip
    seen, seconds = asyncio.run(run(load))
    figures = report(load, seen, seconds)
    if as_json:
        click.echo(json.dumps(figures))
    else:
        for name, value in figures.items():
            shown = "  ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else value
            click.echo(f"{name.replace('_', ' '):24} {shown if shown != '' else 'none'}")
    if not figures["answered"]:
        raise KiloqError(f"none of the requests to {load.url} was answered ({figures['errors']}): is a server there?")
