"""`kiloq.load` from every door: precision, memory, defaults, ends, and what it says when something is wrong."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.qwen1_golden import golden, golden_network
from safetensors.torch import load_file, save_file
from support import qwen_vocabulary, shared

import kiloq
from kiloq.convert.source import open_model
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import FormatError, MissingError, UsageError
from kiloq.core.safetensors import write_safetensors


def copied(case: str, target: Path) -> Path:
    """A reference folder that a test may change."""
    folder = target / case
    folder.mkdir()
    for file in shared("goldens", "model", case).iterdir():
        if file.suffix == ".xz":
            (folder / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
        elif not file.name.startswith("golden"):
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.mark.parametrize("case", ["m18b", "m7b", "m14b", "m72b", "logn", "odd"])
def test_qwen1_folders_give_the_reference_logits(case: str) -> None:
    """Straight from the original's folder (fp32, bf16 and fp16 files, one in shards) to its logits."""
    _, tensors = golden(case)
    model = kiloq.load(shared("goldens", "model", case), weights="fp32")
    got = model.logits(tensors["short.input_ids"][0].tolist())
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, tensors["short.logits"][0].numpy(), atol=2e-5)


def test_loaded_network_is_the_one_that_the_oracle_builds() -> None:
    model = kiloq.load(shared("goldens", "model", "m7b"), weights="fp32", engine="torch")
    twin = golden_network("m7b")
    ids = list(range(40))
    with torch.no_grad():  # a pass that learns rounds otherwise
        np.testing.assert_array_equal(model.logits(ids), twin(torch.tensor([ids]))[0].numpy())


def test_the_original_chat(tmp_path: Path) -> None:
    """model.chat() of the original over three turns: same prompt ids, same greedy ids, and the last token is not lost."""
    folder = copied("real", tmp_path)
    shutil.copyfile(qwen_vocabulary(), folder / "qwen.tiktoken")
    model = kiloq.load(folder, weights="fp32")
    record = json.loads(shared("goldens", "model", "real", "chat.json").read_text())
    turns = [chat for chat in record["chats"] if "output_ids" in chat]
    assert len(turns) == 3
    for chat in turns:
        messages = [{"role": "system", "content": chat["system"]}]
        for question, reply in chat["history_in"] or []:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        messages.append({"role": "user", "content": chat["query"]})
        assert model.tokenizer.chat(messages) == chat["context_ids"]
        want = chat["output_ids"][len(chat["context_ids"]) :]
        answer = model.chat(messages, temperature=0, repetition_penalty=1.0, max_new_tokens=len(want), ntk="frozen")
        assert list(answer.ids) == want
        assert answer.text == model.tokenizer.decode(want, skip_special=True)
    (stopped,) = [chat for chat in record["chats"] if "stop_words_extra" in chat]
    stop = model.tokenizer.decode(stopped["stop_words_extra"][0])
    question = {"role": "user", "content": stopped["query"]}
    answer = model.chat([question], temperature=0, repetition_penalty=1.0, ntk="frozen", stop=(stop,))
    assert answer.text + stop == stopped["response"].removesuffix("<|endoftext|>")  # the original leaves the stop in


@pytest.mark.parametrize(
    ("case", "weights", "stored"),
    [("m18b", "auto", "fp32"), ("m7b", "auto", "bf16"), ("m18b", "bf16", "bf16"), ("logn", "auto", "fp32")],
)
def test_precision(case: str, weights: str, stored: str) -> None:
    """auto keeps what is stored; fp16 becomes fp32 on a CPU."""
    assert kiloq.load(shared("goldens", "model", case), weights=weights, device="cpu").dtype == stored


def test_a_cache_of_another_precision_is_an_option() -> None:
    model = kiloq.load(shared("goldens", "model", "m18b"), kv="bf16")
    exact = kiloq.load(shared("goldens", "model", "m18b"))
    prompt = list(range(30))
    first = model.generate(prompt, temperature=0, max_new_tokens=1, logprobs=1)
    want = exact.generate(prompt, temperature=0, max_new_tokens=1, logprobs=1)
    assert first.logprobs[0].logprob != want.logprobs[0].logprob
    assert first.logprobs[0].logprob == pytest.approx(want.logprobs[0].logprob, abs=0.05)


def test_generation_defaults_come_from_the_folder(tmp_path: Path) -> None:
    folder = copied("m18b", tmp_path)
    config = {
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "repetition_penalty": 1.1,
        "max_new_tokens": 9,
    }
    (folder / "generation_config.json").write_text(
        json.dumps({**config, "eos_token_id": [3, 4], "stop_words_ids": [[5], [6, 7]]})
    )
    model = kiloq.load(folder)
    got = model.defaults
    assert (got.temperature, got.top_p, got.top_k, got.repetition_penalty, got.max_new_tokens) == (0.5, 0.8, 7, 1.1, 9)
    banned = {3, 4, 5}
    answers = model.generate([1, 2], n=20, seed=1, temperature=5.0, top_p=1.0, top_k=0, max_new_tokens=60)
    assert any(answer.finish_reason == "stop" for answer in answers)
    for answer in answers:
        ended = [token for token in answer.ids if token in banned]
        assert ended == ([answer.ids[-1]] if answer.finish_reason == "stop" else [])


def test_nan_weights_are_a_warning_and_broken_logits_an_error(tmp_path: Path) -> None:
    folder = copied("m18b", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.w1.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    model = kiloq.load(folder)
    assert any("layers.1.mlp.up_proj.weight" in warning and "NaN" in warning for warning in model.warnings)
    with pytest.raises(kiloq.KiloqError, match="not numbers"):
        model.generate([1, 2, 3])


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"weights": "int9"}, UsageError, "auto, fp32"),
        ({"kv": "fp64"}, UsageError, "auto, fp32"),
        ({"device": "abacus"}, UsageError, "doctor"),
        ({"device": "cuda:99"}, UsageError, "doctor"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: dict, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        kiloq.load(shared("goldens", "model", "m18b"), **arguments)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_paths(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="smollm"):
        kiloq.load("smolm2")
    with pytest.raises(MissingError, match=r"config\.json"):
        kiloq.load(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGUFnonsense of a file")
    with pytest.raises(FormatError, match=r"x\.gguf"):
        kiloq.load(tmp_path / "x.gguf")


def test_a_model_without_a_tokenizer_takes_ids_and_says_so() -> None:
    model = kiloq.load(shared("goldens", "model", "m18b"))
    assert len(model.generate([1, 2, 3], max_new_tokens=4, temperature=0).ids) == 4
    with pytest.raises(UsageError, match="no tokenizer"):
        model.generate("text")
    with pytest.raises(UsageError, match="did you mean"):
        model.generate([1], max_tokens=3)


def wide_folder(target: Path) -> Path:
    """A folder of 200 MB in fp32: two matrices of 400,000 rows and little else."""
    folder = copied("m18b", target)
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 400_000}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: value.numpy() for name, value in load_file(folder / "model.safetensors").items()}
    for name in ("transformer.wte.weight", "lm_head.weight"):
        tensors[name] = np.zeros((400_000, 64), np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def peak_mib(path: Path, weights: str) -> float:
    """MiB by which the peak of a fresh process's resident memory grows while it loads `path`."""
    script = (
        "import kiloq, sys, torch\n"
        "import kiloq.generate.load, kiloq.generate.torch_backend, gguf.quants\n"
        "def peak():\n"  # not ru_maxrss, which starts at what the parent process had
        "    return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) / 1024\n"
        "before = peak(); model = kiloq.load(sys.argv[1], weights=sys.argv[2], engine='torch'); print(peak() - before)\n"
        "assert 'torch._dynamo' not in sys.modules  # PyTorch's compiler: two seconds that nobody asked for"
    )
    command = [sys.executable, "-c", script, str(path), weights]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_loading_needs_no_second_copy(tmp_path: Path) -> None:
    """Mapped, converted and decoded weights: the peak is the file's pages, what was made of them, and 80 for start-up.

    A second copy of 196 MiB of fp32 would go over each bound. Pages count, because every weight is read once.
    """
    folder = wide_folder(tmp_path)
    assert peak_mib(folder, "fp32") < 196 + 80
    assert peak_mib(folder, "bf16") < 98 + 196 + 80  # the mapped file's pages and the converted weights
    write_gguf_file(open_model(folder), tmp_path / "wide.gguf", "q8_0")
    assert peak_mib(tmp_path / "wide.gguf", "fp32") < 196 + 54 + 80  # the file's pages, and a few rows in the making


@pytest.mark.parametrize(("available", "dtype"), [(1 << 40, "fp32"), (300_000, "bf16")])
def test_quantised_files_become_fp32_where_that_fits(
    available: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf_file(open_model(shared("goldens", "model", "m18b")), tmp_path / "tiny.gguf", "q8_0")
    monkeypatch.setattr("kiloq.core.machine.memory", lambda: (available, available))
    model = kiloq.load(tmp_path / "tiny.gguf", device="cpu", engine="torch")
    assert model.dtype == dtype
    assert any("loaded as bf16" in warning for warning in model.warnings) == (dtype == "bf16")
    assert kiloq.load(tmp_path / "tiny.gguf", engine="torch", weights="fp32").dtype == "fp32"
