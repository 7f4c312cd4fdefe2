"""schemathesis makes requests out of /openapi.json, right and wrong ones, and looks for answers that it does not describe.

    python schemathesis_client.py URL KEY MODEL [EXAMPLES]     of each operation and phase; 20 unless it is told

The scripted model answers most of them with nothing at once, so that thousands of requests take seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checks import key, metric, model, run, same, scripted, url

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
)
EXAMPLES = sys.argv[4] if len(sys.argv) > 4 else "20"
SEED = "1"  # the same requests each time


@cache
def report() -> dict[str, Any]:
    """Of one run of the command."""
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(Path(__file__).parent)}
    command = [Path(sys.executable).parent / "schemathesis", "run", f"{url()}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key()}", "--checks", ",".join(CHECKS), "--seed", SEED]
    command += ["--max-examples", EXAMPLES, "--request-timeout", "20", "--continue-on-failure", "--no-color"]
    command += ["--report", "json", "--report-json-path", "report.json"]
    done = subprocess.run(
        command, env=environment | {"KILOQ_MODEL": model()}, capture_output=True, text=True, check=False
    )
    assert Path("report.json").exists(), done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(Path("report.json").read_text("utf-8"))
    print(done.stdout, file=sys.stderr)
    return found


def cases() -> int:
    return int(report()["test_cases"]["generated"])


@scripted
def no_answer_breaks_the_description() -> None:
    """No 5xx, no status, media type or shape that is not described, and no answer without the key."""
    same([(each["title"], each["operations"]) for each in report()["failures"]], [])
    same((report()["errors"], report()["exit_code"]), ([], 0))


@scripted
def every_operation_was_tried() -> None:
    operations = report()["operations"]
    same((operations["tested"], operations["errored"], operations["skipped"]), (operations["total"], 0, 0))
    assert operations["total"] >= 20 and cases() > 1000, report()


@scripted
def the_server_is_well_afterwards() -> None:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url()}/health", timeout=5) as response:
        same(json.load(response), {"status": "ok"})
    same(metric("num_requests_running"), 0.0)


if __name__ == "__main__":
    run("schemathesis", version("schemathesis"), cases=cases)
