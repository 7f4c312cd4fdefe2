"""Runs every client whose environment is here, and keeps what it checked in benchmarks/results.

    python benchmarks/clients.py [--out FILE]     needs the environments of benchmarks/clients.sh

The default model must have been fetched (`kiloq get smollm2`). schemathesis makes more requests here than in the tests.
"""  # fmt: skip

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import write

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from serve.clients.running import (
    CLIENTS,
    Client,
    check_likelihoods,
    run_client,
    scripted_server,
    trained_server,
)
from serving import Served

import kiloq

EXAMPLES = "50"  # of each operation, which schemathesis makes


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    out: Path | None = parser.parse_args().out
    found = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        servers = {
            "scripted": stack.enter_context(scripted_server()),
            "trained": stack.enter_context(trained_server(kiloq.load("smollm2"))),
        }
        for name, client in CLIENTS.items():
            found.append(measured(name, client, servers, Path(folder) / name))
            print(name, found[-1]["version"], "passed" if found[-1]["passed"] else "not passed", file=sys.stderr)
    print(write("clients", {"clients": found}, out))


def measured(name: str, client: Client, servers: dict[str, Served], folder: Path) -> dict[str, Any]:
    """One row: of both models together."""
    row: dict[str, Any] = {"client": name, "version": None, "checks": [], "passed": False, "failed": {}}
    if client.absent is not None:
        return row | {"failed": {"environment": client.absent}}
    if client.program == "schemathesis_client.py":
        client = replace(client, options=(EXAMPLES,))
    for model in client.models:
        result = run_client(client, servers[model], folder / model)
        row["version"] = result["version"]
        row["checks"] += result["checks"]
        row["failed"] |= result["failed"]
        row |= {field: result[field] for field in ("cases",) if field in result}
        if result.get("likelihoods"):
            check_likelihoods(servers[model].service.model, result["likelihoods"])
            row["checks"].append("log_likelihoods_are_those_of_one_pass")
            row["likelihoods"] = len(result["likelihoods"])
    return row | {"passed": not row["failed"]}


if __name__ == "__main__":
    main()
