"""`kiloq serve` as a process: what it refuses, how it starts, where keys go, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from command_line import KILOQ, environment, run
from support import default_model


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "give it a key"),
        (["--host", "::"], "give it a key"),
        (["--api-key", "short"], "shorter than 8"),
        (["--api-key", "wïth-umlauts"], "printable ASCII"),
        (["--key-file", "none.txt"], "cannot be read"),
        (["--port", "99999"], "99999"),
        (["--host", "nowhere.invalid", "--api-key", "long-enough"], "cannot listen"),
    ],
)
def test_what_it_does_not_start_with(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = run(["serve", "smollm2", *arguments], tmp_path, program=KILOQ)
    *before, last = done.stderr.splitlines()
    assert done.returncode == 2 and sentence in last, done.stderr
    assert all("warning" in line for line in before), done.stderr


def test_a_port_that_is_taken_and_a_model_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run(["serve", "smollm2", "--port", str(taken.getsockname()[1])], tmp_path, program=KILOQ)
        assert done.returncode == 2 and "choose another --port" in done.stderr
    done = run(["serve", str(tmp_path / "nothing.gguf"), "--port", "0"], tmp_path, program=KILOQ)
    assert done.returncode != 0 and "there is no such file" in done.stderr and "Traceback" not in done.stderr


def test_it_answers_while_it_ends_and_ends_with_nothing_wrong(tmp_path: Path) -> None:
    """One line when it is ready; SIGTERM lets the stream finish; the key is in no log."""
    model = default_model()
    (tmp_path / "keys").write_text("the-key-in-a-file\n")
    command = [sys.executable, "-m", "kiloq.cli", "serve", str(model), "--name", "m", "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--key-file", str(tmp_path / "keys")], stderr=subprocess.PIPE, text=True,
        env=environment(tmp_path, KILOQ_API_KEYS="the-key-of-the-environment"),
    )  # fmt: skip
    with process, ExitStack() as closing:
        closing.callback(process.kill)
        assert process.stderr is not None
        lines = []
        while not lines or lines[-1]["event"] != "ready":
            lines.append(json.loads(process.stderr.readline()))
        ready = lines[-1]
        assert (
            ready["model"] == "m"
            and ready["engine"]
            and ready["context"]
            and ready["cache_mib"]
            and ready["concurrency"]
        )
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", ready["url"])
        assert b"the-key" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        client = closing.enter_context(httpx2.Client(base_url=ready["url"], trust_env=False, timeout=60))
        assert client.get("/v1/models").status_code == 401
        headers = {"authorization": "Bearer the-key-of-the-environment"}
        body = {
            "messages": [{"role": "user", "content": "Count."}],
            "max_tokens": 60,
            "ignore_eos": True,
            "stream": True,
        }
        with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            parts = response.iter_bytes()
            first = next(parts)
            os.kill(process.pid, signal.SIGTERM)
            rest = b"".join(parts)
        assert (first + rest).endswith(b"data: [DONE]\n\n")
        assert process.wait(20) == 0
        log = process.stderr.read()
        assert "the-key" not in log and "Count." not in log
