"""`kiloq serve`: loads a model and answers HTTP requests until it is told to stop.

The socket is open before the model is loaded, so that clients learn what they wait for. On SIGTERM and Ctrl-C no new
requests are taken, those that run are finished within --drain seconds, and then the rest is ended.
"""

from __future__ import annotations

import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kiloq.core.errors import KiloqError, MissingError, UsageError
from kiloq.generate.options import loading, model_options
from kiloq.generate.stage_plan import StagePlan

if TYPE_CHECKING:
    from kiloq.serve.service import Service

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEYS = "KILOQ_API_KEYS"
NEEDED = ("fastapi", "prometheus_client", "uvicorn")


@click.command("serve")
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; others than loopback need a key.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--name", "names", multiple=True, help="Name of the model in requests; repeatable [default: MODEL].")
@click.option("--api-key", "keys", multiple=True, metavar="KEY", help=f"Repeatable; better in {KEYS} or --key-file.")
@click.option("--key-file", type=click.Path(path_type=Path, dir_okay=False), help="One key a line.")
@click.option("--cors-origin", "origins", multiple=True, metavar="URL", help="Pages that may use it; repeatable.")
@click.option("--cache", "cache_gib", type=float, help="GiB of keys and values [default: a quarter of what is free].")
@click.option("--concurrency", default=32, show_default=True, type=click.IntRange(1, 1024), help="Answers at once.")
@click.option("--queue", default=256, show_default=True, type=click.IntRange(1, 100_000), help="Answers that may wait.")
@click.option("--max-body", default=4, show_default=True, type=click.IntRange(1, 1024), help="MiB of a request.")
@click.option("--timeout", default=600.0, show_default=True, type=float, help="Seconds of a request.")
@click.option(
    "--drain", default=30, show_default=True, type=click.IntRange(0, 3600), help="Seconds to finish at the end."
)
@click.option(
    "--stages",
    default=1,
    show_default=True,
    metavar="N",
    type=int,
    help="Processes to split the layers over; PyTorch only.",
)
@click.option("--rendezvous", metavar="HOST:PORT", help="Where stages meet [default: a private file, no port].")
@click.option(
    "--rendezvous-anywhere", is_flag=True,
    help="HOST may be one that others can reach. torch.distributed has no authentication: they could take part.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Log lines as JSON.")
@model_options
def serve_command(model: str, host: str, port: int, **options: Any) -> None:
    """Serve MODEL (a name, a folder or a .gguf file) over HTTP, as OpenAI and DashScope do, with a page for people.

    \b
    Examples:
      kiloq serve smollm2                              then open http://127.0.0.1:8000
      kiloq serve Qwen-1_8B-Chat --weights int8 --port 9000
    """
    keys = _keys(options["keys"], options["key_file"])
    if host not in LOOPBACK and not keys:
        raise UsageError(
            f"--host {host} lets others reach the server: give it a key with --key-file or {KEYS}, or leave --host out"
        )
    plan = StagePlan(options["stages"], options["rendezvous"], options["rendezvous_anywhere"])
    plan.check_engine(options["engine"])
    if any(find_spec(name) is None for name in NEEDED):
        raise MissingError("serving needs more packages: run `pip install 'kiloq[serve]'` to get them")
    import uvicorn

    from kiloq.serve.app import create_app
    from kiloq.serve.guard import Rules
    from kiloq.serve.logs import say, set_up
    from kiloq.serve.server import Server, bind
    from kiloq.serve.service import Service

    set_up(as_json=options["as_json"])
    if options["keys"]:
        say("warning", detail=f"a key after --api-key is seen in listings of processes: {KEYS} and --key-file hide it")
    rules = Rules(Rules.hashed(keys), frozenset(options["origins"]), options["max_body"] << 20)
    service = Service(options["names"] or (model,))
    app = create_app(service, rules, request_s=options["timeout"])
    sockets = [bind(host, port)]
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=options["drain"],
        server_header=False,
    )  # fmt: skip
    server = Server(config, service)
    loader = threading.Thread(target=_load, args=(service, server, model, plan, sockets[0], options), daemon=True)
    loader.start()
    server.run(sockets=sockets)
    if service.failure is not None:
        raise KiloqError(service.failure)


def _keys(given: tuple[str, ...], file: Path | None) -> list[str]:
    """Keys from all three places, which are then forgotten: neither children nor listings shall see them."""
    keys = [*given, *os.environ.pop(KEYS, "").split()]
    if file is not None:
        try:
            keys += [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UsageError(f"{file}: cannot be read as a list of keys: {reason}") from None
        if not keys:
            raise UsageError(f"{file}: has no key: write one on a line")
    if any(len(key) < 8 or not key.isascii() or not key.isprintable() for key in keys):
        raise UsageError("a key is shorter than 8 characters, or has others than printable ASCII: use a longer one")
    return keys


def _load(service: Service, server: Any, name: str, plan: StagePlan, socket: Any, options: dict[str, Any]) -> None:
    """Loads the model while the server already answers that it does; then watches its other processes, if any."""
    from kiloq.generate.engine import Limits
    from kiloq.generate.load import load
    from kiloq.serve.logs import Progress, say

    try:
        cache = _cache_bytes(options["cache_gib"])
        limits = Limits(cache, options["concurrency"], options["queue"])
        model = load(name, stages=plan, limits=limits, progress=Progress(), **loading(options))
        service.begin(model)
    except KiloqError as error:
        service.failure = str(error)
        server.should_exit = True
        return
    except Exception as error:
        service.failure = f"the model cannot be loaded ({type(error).__name__}: {error})"
        server.should_exit = True
        return
    address = socket.getsockname()
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    say(
        "ready", url=f"http://{host}:{address[1]}", model=service.names[0], weights=model.dtype, engine=model.backend,
        context=model.engine.max_length, cache_mib=cache >> 20, concurrency=options["concurrency"],
    )  # fmt: skip
    for warning in model.warnings:
        say("warning", detail=warning)
    if plan.count > 1:
        _watch(service, server, model)


def _watch(service: Service, server: Any, model: Any) -> None:
    """Ends the server when a stage has failed: whatever runs it can start it again."""
    from kiloq.serve.logs import say

    failure = model.engine.backend.wait_for_failure()
    if failure is not None:
        say("failed", detail=failure)
        service.failure = failure
        server.should_exit = True


def _cache_bytes(gib: float | None) -> int:
    """The budget of keys and values."""
    from kiloq.core import machine

    if gib is not None:
        if not 0.001 <= gib <= 1 << 20:
            raise UsageError(f"--cache is {gib}: give the GiB for keys and values, from 0.001")
        return int(gib * 2**30)
    return max((machine.memory()[1] or 4 << 30) // 4, 256 << 20)
