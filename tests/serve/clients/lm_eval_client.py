"""What the `lm_eval` command asks of a server: generations over chat and text, log-likelihoods of choices and of texts.

Runs the command itself, on the small tasks in tasks/, without torch, transformers or a hub: the tokenizer is the
server's (/tokenizer_info and /tokenize). What it measured is printed too, as "likelihoods", for the runner to compare
with the model's own numbers. lm_eval asks the server which token begins a text, by that token's text, which the server
reads as plain text like any other; so that token is told on the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checks import api, key, model, run, same, scripted, trained, url

os.environ["OPENAI_API_KEY"] = key()
OPENS_REQUESTS = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PREFIX_TOKEN = 1  # bos_token of the default model, which lm_eval prefers to eos_token
_likelihoods: list[dict[str, Any]] = []


def evaluated(kind: str, path: str, tasks: list[str], *options: str, **arguments: Any) -> list[Any]:
    """Of each task its results and its samples, in order."""
    given = {"model": model(), "base_url": api() + path, "auth_token": key(), "max_retries": 1, **arguments}
    out = Path(f"out-{len(list(Path().iterdir()))}")
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", "--model", kind, "--tasks", ",".join(tasks), "--include_path", "tasks",
         "--model_args", ",".join(f"{name}={value}" for name, value in given.items()),
         "--log_samples", "--output_path", str(out), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    (results,) = out.rglob("results_*.json")
    found = json.loads(results.read_text("utf-8"))["results"]
    return [(found[task], _samples(out, task)) for task in tasks]


def _samples(out: Path, task: str) -> list[dict[str, Any]]:
    (path,) = out.rglob(f"samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return sorted(rows, key=lambda row: int(row["doc_id"]))


def of_choices(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for sample in samples:
        for place, ((value, greedy), *_) in enumerate(sample["resps"]):
            context, continuation = sample["arguments"][f"gen_args_{place}"].values()
            rows.append(
                {
                    "context": context,
                    "continuation": continuation,
                    "value": float(value),
                    "greedy": str(greedy) == "True",
                }
            )
    return rows


@scripted
def generation_over_chat() -> None:
    ((results, samples),) = evaluated(
        "local-chat-completions", "/chat/completions", ["kiloq_say"], "--apply_chat_template"
    )
    same((results["exact_match,none"], len(samples)), (1.0, 3))


@scripted
def generation_over_text() -> None:
    ((results, samples),) = evaluated("local-completions", "/completions", ["kiloq_complete"])
    same((results["exact_match,none"], len(samples)), (1.0, 3))


@trained
def log_likelihoods_of_choices_and_of_texts() -> None:
    tasks = ["kiloq_choice", "kiloq_text"]
    choices, texts = evaluated("local-completions", "/completions", tasks, custom_prefix_token_id=PREFIX_TOKEN)
    assert 0 <= choices[0]["acc,none"] <= 1 and texts[0]["byte_perplexity,none"] > 1
    _likelihoods.extend(of_choices(choices[1]))
    same(len(_likelihoods), 16)
    for sample in texts[1]:
        text = sample["doc"]["text"]
        _likelihoods.append({"prefix": PREFIX_TOKEN, "continuation": text, "value": float(sample["resps"][0][0])})


@trained
def several_requests_at_once_change_nothing() -> None:
    ((_, samples),) = evaluated(
        "local-completions", "/completions", ["kiloq_choice"], "--batch_size", "4", num_concurrent=2
    )
    same(of_choices(samples), _likelihoods[:16])


@trained
def the_server_tells_of_its_tokenizer() -> None:
    request = urllib.request.Request(f"{url()}/tokenizer_info", headers={"Authorization": f"Bearer {key()}"})
    with OPENS_REQUESTS.open(request, timeout=10) as response:
        assert set(json.load(response)) >= {"eos_token", "bos_token", "pad_token", "chat_template"}


if __name__ == "__main__":
    shutil.copytree(Path(__file__).parent / "tasks", "tasks")
    run("lm_eval", version("lm_eval"), likelihoods=lambda: _likelihoods)
