"""Where tasks run: on Daft, in processes of this machine or on the workers of a Ray cluster, with the same program.

The engine sees names of tasks, never documents: a task reads and writes files, so nothing large goes through a queue,
and another engine needs no more than a map. On a cluster the run's folder and the sources must lie on storage that all
machines see under one path. Daft's native runner gives every task to one of `workers` processes; on Ray each is an
actor, and a task whose machine is lost is given to another. Source: Daft 0.7 (docs.daft.ai, `daft.cls`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kiloq.core import errors
from kiloq.core.errors import KiloqError, MissingError, UsageError, file_sentence
from kiloq.core.files import shown
from kiloq.core.machine import usable_cores
from kiloq.prepare.pipeline.recipe import Recipe
from kiloq.prepare.pipeline.worker import Worker

CONNECT_SECONDS = 10
QUIET = {  # Daft and Ray report their use over the network unless told not to, and draw bars of their own
    "DAFT_ANALYTICS_ENABLED": "0",
    "DAFT_PROGRESS_BAR": "0",
    "DO_NOT_TRACK": "1",
    "SCARF_NO_ANALYTICS": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
}


def run_tasks(recipe: Recipe, folder: str, tasks: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(Place in `tasks`, tally) of every task, as they finish. Raises the KiloqError of a task that fails with one."""
    if len(tasks) == 1 and recipe.engine == "native":  # another process would take longer to start
        yield 0, Worker(folder).run(tasks[0])
        return
    daft = _daft(recipe)
    workers = min(recipe.workers or usable_cores(), len(tasks))

    @daft.cls(max_concurrency=workers, use_process=recipe.engine == "native")
    class Tasks:
        def __init__(self, folder: str) -> None:
            self.worker = Worker(folder)

        @daft.method(return_dtype=daft.DataType.string())  # type: ignore[untyped-decorator]
        def run(self, task: str) -> str:
            return _answer(self.worker, task)

    names = [json.dumps(task) for task in tasks]
    frame = daft.from_pydict({"at": list(range(len(names))), "task": names})
    frame = frame.into_batches(1) if recipe.engine == "native" else frame.into_partitions(len(names))
    for row in frame.select("at", Tasks(folder).run(daft.col("task")).alias("answer")).iter_rows():
        answer = json.loads(row["answer"])
        if "error" in answer:
            raise getattr(errors, answer["kind"], RuntimeError)(answer["error"])
        yield row["at"], answer["tally"]


def _answer(worker: Worker, task: str) -> str:
    """What a task came to, as text; errors meant for people travel as their sentence, others with their traceback."""
    try:
        return json.dumps({"tally": worker.run(json.loads(task))})
    except KiloqError as error:
        return json.dumps({"error": str(error), "kind": type(error).__name__})
    except OSError as error:
        return json.dumps({"error": file_sentence(error), "kind": "KiloqError"})
    except Exception:
        return json.dumps({"error": traceback.format_exc(), "kind": "RuntimeError"})


def _daft(recipe: Recipe) -> Any:
    """Daft with the recipe's runner; a process has one runner for its life."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import daft
    except ImportError:
        raise MissingError("preparing text needs Daft: run `pip install 'kiloq[data]'` to get it") from None
    if recipe.engine == "ray":
        _join_cluster(recipe.address or "auto")
    try:
        if recipe.engine == "native":
            daft.set_runner_native()
        else:
            daft.set_runner_ray(noop_if_initialized=True)
    except daft.exceptions.DaftCoreException:  # it is set already
        if (now := daft.runners.get_or_infer_runner_type()) != recipe.engine:
            raise UsageError(
                f"this process runs Daft on {now!r} already: use a new process for {recipe.engine!r}"
            ) from None
    return daft


def _join_cluster(address: str) -> None:
    try:
        import ray
    except ImportError:
        raise MissingError("engine = \"ray\" needs Ray: run `pip install 'kiloq[data,ray]'` to get it") from None
    try:
        if host := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address):
            socket.create_connection((host[1], int(host[2])), CONNECT_SECONDS).close()  # Ray itself tries for ever
        ray.init(
            address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR,
            runtime_env={"env_vars": QUIET},
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise UsageError(
            f"address {shown(address)}: no Ray cluster answers there ({shown(error, 120)}): start one with "
            '`ray start --head`, or give engine = "native"'
        ) from None
