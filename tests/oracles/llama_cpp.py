"""llama.cpp itself (PyPI `xllamacpp`, prebuilt) as an oracle: greedy ids of a GGUF in float32 on the CPU."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest


def server(path: Path, context: int = 256) -> Any:
    """A llama.cpp server object for the file; skips the test where xllamacpp is not installed."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_batch, params.n_ubatch = context, 1, 128, 128
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # its threads spin where cores are shared
    params.n_gpu_layers, params.warmup, params.verbosity = 0, False, -1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.sampling.seed = 1
    return xllamacpp.Server(params)


def tokens(running: Any, text: str, special: bool) -> list[int]:
    """Ids of `text` from a `server`; control tokens in it are recognised if `special`. No BOS."""
    body = json.dumps({"content": text, "add_special": False, "parse_special": special}).encode()
    request = urllib.request.Request(
        f"{running.listening_address}/tokenize", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        ids: list[int] = json.load(answer)["tokens"]
        return ids


def greedy_ids(path: Path, prompt: list[int], steps: int, banned: list[int]) -> list[int]:
    """The `steps` greedy ids after `prompt`, `banned` ids left out.

    Pieces of UTF-8 characters have to be banned: llama.cpp's server does not report the ids of incomplete ones.
    """
    request = {
        "prompt": prompt,
        "n_predict": steps,
        "temperature": 0.0,
        "repeat_penalty": 1.0,
        "ignore_eos": True,
        "logprobs": 1,
        "n_probs": 1,
        "cache_prompt": False,
        "logit_bias": [[token, False] for token in banned],
    }
    answer = server(path).handle_completions(request)
    assert "choices" in answer, answer
    return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]
