"""The real dashscope SDK against our server: what it checks is in clients/dashscope_client.py."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from dashscope_wire import pooled
from serving import scripted_model, served

from kiloq.serve.guard import Rules

CLIENT = Path(__file__).parent / "clients" / "dashscope_client.py"
CLIENTS = Path(os.environ.get("KILOQ_CLIENTS", "~/.cache/kiloq-clients")).expanduser()
KEY = "key-of-the-test"


@pytest.mark.clients
def test_the_sdk_finds_its_own_service() -> None:
    python = CLIENTS / "dashscope" / "bin" / "python"
    if not python.exists():
        folder = python.parent.parent
        pytest.skip(f"there is no {python}: make it with `python3 -m venv {folder}` and `{folder}/bin/pip install dashscope==2.0.2`")  # fmt: skip
    model = scripted_model(delay_s=0.004, max_length=4000)
    pooled(model)
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "NO_PROXY": "127.0.0.1"}
    with served(model, Rules(Rules.hashed([KEY])), request_s=3.0) as server:
        done = subprocess.run(
            [python, CLIENT, server.url, KEY], check=False, capture_output=True, text=True, timeout=100, env=environment
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"] == "2.0.2" and len(found["checks"]) >= 15
    failed = {name: error for name, error in found["checks"].items() if error is not None}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
