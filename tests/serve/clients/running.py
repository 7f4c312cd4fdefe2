"""Runs a client program in its own environment against a server of this process, and gives what it printed.

Used by the tests and by benchmarks/clients.py. Each client is run once for every model it has checks for: the scripted one, whose
server also ends answers after a few seconds, and the default model. benchmarks/clients.sh makes the environments.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from serving import Served, scripted_model, served

from kiloq.generate.model import Model
from kiloq.serve.guard import Rules

HERE = Path(__file__).parent
ENVIRONMENTS = Path(os.environ.get("KILOQ_CLIENTS") or "~/.cache/kiloq-clients").expanduser()
KEY = "key-of-the-test"
STEP_S = 0.001  # of the scripted model: slow enough that a client can leave a stream early
REQUEST_S = 4.0  # after which the scripted model's server gives up an answer
LOGPROB_ERROR = 1e-4  # of each token: the engine's own steps against one pass, in float32
CLIENT_S = 100  # after which a client is stopped


@dataclass(frozen=True)
class Client:
    """A program and where it runs."""

    environment: str
    program: str
    models: tuple[str, ...] = ("scripted", "trained")
    options: tuple[str, ...] = ()

    @property
    def runner(self) -> Path:
        """What runs the program; exists where its environment has been made."""
        folder = ENVIRONMENTS / self.environment
        return folder / "node_modules" if self.program.endswith(".mjs") else folder / "bin" / "python"

    @property
    def absent(self) -> str | None:
        """Why it cannot run here, in a sentence."""
        if self.runner.exists() and (ENVIRONMENTS / self.environment / "wanted.txt").exists():
            return None
        return f"the environment {self.environment!r} is not here: run `benchmarks/clients.sh {self.environment}`"


CLIENTS = {
    "openai 3": Client("openai3", "openai_client.py"),
    "openai 2": Client("openai2", "openai_client.py"),
    "openai 0.28": Client("openai0", "openai0_client.py"),
    "litellm": Client("openai2", "litellm_client.py"),
    "langchain-openai": Client("openai2", "langchain_client.py"),
    "smolagents": Client("openai2", "smolagents_client.py"),
    "Qwen-Agent": Client("openai2", "qwen_agent_client.py"),
    "llm": Client("openai3", "llm_client.py"),
    "lm_eval": Client("lm_eval", "lm_eval_client.py"),
    "schemathesis": Client("schemathesis", "schemathesis_client.py", ("scripted",)),
    "openai (npm)": Client("node", "openai_client.mjs"),
    "ai (npm)": Client("node", "ai_client.mjs"),
}


@contextmanager
def scripted_server() -> Iterator[Served]:
    """The scripted model behind a key; it has no hidden states, so that its embeddings are all alike."""
    model = scripted_model(delay_s=STEP_S, max_length=20_000)
    model._backend.pooled = lambda ids: np.ones(8, np.float32)  # type: ignore[attr-defined]
    with served(model, Rules(Rules.hashed([KEY])), request_s=REQUEST_S) as server:
        yield server


@contextmanager
def trained_server(model: Model) -> Iterator[Served]:
    """A real model behind a key, by a name that no machine's folders are in."""
    model.name = "smollm2"
    with served(model, Rules(Rules.hashed([KEY]))) as server:
        yield server


def run_client(client: Client, server: Served, folder: Path) -> dict[str, Any]:
    """What the client printed. `folder` is an empty one, which is its home and where it works."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [client.runner, HERE / client.program]
    if client.program.endswith(".mjs"):  # modules are looked for beside the program
        (folder / "node_modules").symlink_to(client.runner)
        for program in HERE.glob("*.mjs"):
            shutil.copy(program, folder)
        command = [Path(shutil.which("node") or "node"), folder / client.program]
    done = subprocess.run(
        [*command, server.url, KEY, server.service.names[0], *client.options],
        cwd=folder, env=_environment(folder), capture_output=True, text=True, timeout=CLIENT_S, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise AssertionError(
            f"{client.program} printed no result:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        ) from None
    if done.returncode and not found["failed"]:
        found["failed"] = {"exit": f"{client.program} ended with code {done.returncode}"}
    found["stderr"] = done.stderr[-6000:]
    return found


def check_likelihoods(model: Model, rows: list[dict[str, Any]]) -> None:
    """What lm_eval measured over HTTP, from blocks of keys and values, is what one uncached pass of the model gives."""
    for row in rows:
        ids, start = _continuation(model, row)
        logits_TV = model.logits(ids).astype(np.float64)
        best_T = logits_TV.max(-1, keepdims=True)
        logprobs_TV = logits_TV - best_T - np.log(np.exp(logits_TV - best_T).sum(-1, keepdims=True))
        want = sum(logprobs_TV[place - 1, ids[place]] for place in range(start, len(ids)))
        limit = LOGPROB_ERROR * (len(ids) - start)
        assert abs(row["value"] - want) <= limit, f"{row} is not {want} to {limit:g}"
        greedy = all(logits_TV[place - 1].argmax() == ids[place] for place in range(start, len(ids)))
        assert row.get("greedy", greedy) == greedy, f"{row}: greedy is {greedy}"


def _continuation(model: Model, row: dict[str, Any]) -> tuple[list[int], int]:
    """The token ids, and where those begin that are measured: as lm_eval 0.4.13 cuts them (TemplateLM._encode_pair)."""
    tokenizer = model.tokenizer
    if "prefix" in row:
        return [row["prefix"], *tokenizer.encode(row["continuation"])], 1
    return tokenizer.encode(row["context"] + row["continuation"]), len(tokenizer.encode(row["context"]))


def _environment(home: Path) -> dict[str, str]:
    """Nothing of ours but the path; nobody's hub, proxy or telemetry."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "DO_NOT_TRACK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
    }
