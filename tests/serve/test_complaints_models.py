"""What people complained about elsewhere, as far as it is about models on disk, programs and the page: each a named test of
what holds here, with the threads that it comes from. The others are in `test_complaints.py`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pexpect
import pytest
import torch
from command_line import spawn
from oracles.tiny_models import save, tiny
from serving import served
from support import default_model, qwen_vocabulary
from transformers import AutoModelForCausalLM, AutoTokenizer

import kiloq
from kiloq.cli import main
from kiloq.convert.source import open_model
from kiloq.convert.write import write_folder
from kiloq.quantize.calibration import conversations
from kiloq.tokenize.tokenizer import Tokenizer
from kiloq.tokenize.window import fit

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "weather"}}, {"type": "function", "function": {"name": "clock"}}]
ENDS = {151_643, 151_645}  # <|endoftext|> and <|im_end|>


@pytest.fixture(scope="module")
def qwen1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model as first-generation Qwen's owners have it on disk: fused weights and qwen.tiktoken."""
    folder = tmp_path_factory.mktemp("qwen1")
    save(tiny("qwen2", vocab_size=151_936, num_key_value_heads=4, max_position_embeddings=2048), folder / "in")
    Tokenizer.load(qwen_vocabulary()).save(folder / "in")
    write_folder(open_model(folder / "in"), folder / "out", "qwen1")
    assert json.loads((folder / "out" / "config.json").read_text())["architectures"] == ["QWenLMHeadModel"]
    return folder / "out"


@pytest.fixture(scope="module")
def exported(qwen1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the layout that everybody opens."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    write_folder(open_model(qwen1), folder, "qwen2")
    return folder


def test_03_qwen1_gets_its_own_form_of_function_calls(qwen1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QwenLM/Qwen#817: other servers put their own template in the place of Qwen's ReAct prompt."""
    model = kiloq.load(qwen1)
    read: list[str] = []
    submit = model.engine.submit

    def noted(prompt: list[int], *args: Any, **options: Any) -> Any:
        read.append(model.tokenizer.decode(prompt))
        return submit(prompt, *args, **options)

    monkeypatch.setattr(model.engine, "submit", noted)
    with served(model) as server:
        assert server.chat("How is it in Köln?", tools=TOOLS, max_tokens=2).status_code == 200
    assert "Action: the action to take, should be one of [weather" in read[0]
    assert "Question: How is it in Köln?" in read[0] and "<tools>" not in read[0]


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_04_quantised_models_answer_on_a_cpu(weights: str) -> None:
    """QwenLM/Qwen#884, #461: the Int4 model wants a GPU."""
    model = kiloq.load(default_model(), weights=weights, device="cpu")
    assert (model.device, model.dtype) == ("cpu", weights)
    with served(model) as server:
        answer = server.chat("What is the capital of France?", max_tokens=12, temperature=0).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]


def test_05_a_quantised_folder_is_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """QwenLM/Qwen#464: what AutoGPTQ writes cannot be used. Bounds: a tenth on text like that of the calibration,
    0.3 (here 0.21) on noise, in the logarithm of the perplexity of random weights, which have no redundancy."""
    folder = save(tiny("qwen2"), tmp_path / "in", tokenizer=True)
    (tmp_path / "talks.json").write_text(json.dumps([
        {"messages": [{"role": "user", "content": "hello " * 30}, {"role": "assistant", "content": "a hell of a text"}]}
    ] * 16))  # fmt: skip
    options = ["--group", "32", "--length", "100", "--calibration", str(tmp_path / "talks.json"), "--json"]
    assert main(["quantize", str(folder), "--out", str(tmp_path / "out"), *options]) == 0
    report = json.loads(capsys.readouterr().out)["perplexity"]
    ids = np.random.default_rng(0).integers(0, 260, 120).tolist()

    def perplexity(path: Path) -> float:
        logits = torch.from_numpy(kiloq.load(path, weights="auto").logits(ids)).double()
        return math.exp(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])))

    before, after = perplexity(folder), perplexity(tmp_path / "out")
    assert abs(math.log(after / before)) < 0.3 and abs(math.log(report["after"] / report["before"])) < 0.1
    with served(kiloq.load(tmp_path / "out")) as server:
        (choice,) = server.post("/v1/completions", {"prompt": "hello", "max_tokens": 5}).json()["choices"]
        assert choice["finish_reason"] in ("stop", "length")


def test_06_exported_tokenizers_have_their_end_padding_and_template(exported: Path) -> None:
    """QwenLM/Qwen#99, #1060: eos and pad are None, and tools for tuning break."""
    theirs = AutoTokenizer.from_pretrained(exported)
    assert theirs.eos_token_id in ENDS and theirs.pad_token_id in ENDS and theirs.pad_token_id != theirs.eos_token_id
    assert "<|im_start|>" in theirs.chat_template


def test_07_qwen1_becomes_qwen2_with_equal_logits(qwen1: Path, exported: Path) -> None:
    """vllm-project/vllm#45131: first-generation Qwen was removed. 1e-4: float32 sums in another order."""
    ids = kiloq.Tokenizer.load(qwen_vocabulary()).encode("千问 is a family of models.")
    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits[0].numpy()
    for folder in (qwen1, exported):
        np.testing.assert_allclose(kiloq.load(folder, weights="fp32").logits(ids), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("end", sorted(ENDS))
def test_08_both_end_tokens_end_an_answer(exported: Path, end: int) -> None:
    """vllm-project/vllm#1136: it never stops, because 151643 is the end in the file and 151645 that of a message."""
    model = kiloq.load(exported)
    assert set(model.eos_ids) >= ENDS
    with served(model) as server:
        answer = server.chat("Hi", temperature=0, max_tokens=5, logit_bias={str(end): 1000}).json()
        assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] == 1
        assert answer["choices"][0]["message"]["content"] == ""


def test_22_an_exported_model_answers_the_same(qwen1: Path, exported: Path) -> None:
    """hiyouga/LlamaFactory#6020, #10596, #8501: after merging or export it answers worse, because the template is another.
    The export has its template, which renders the same prompt for others; and the logits at its end are equal."""
    theirs = AutoTokenizer.from_pretrained(exported)
    network = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32, trust_remote_code=False).eval()
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好吗？"}]
    ids = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        want = network(torch.tensor([ids])).logits[0, -1].numpy()
    for folder in (qwen1, exported):
        model = kiloq.load(folder, weights="fp32")
        with served(model) as server:
            assert server.post("/tokenize", {"messages": talk}).json()["tokens"] == ids
            chosen = server.post(CHAT, {"messages": talk, "max_tokens": 1, "temperature": 0, "logprobs": True, "repetition_penalty": 1.0}).json()  # fmt: skip
        np.testing.assert_allclose(model.logits(ids)[-1], want, atol=1e-4, rtol=0)
        assert chosen["choices"][0]["logprobs"]["content"][0]["id"] == int(want.argmax())


def test_23_what_is_cut_keeps_the_end_of_every_message() -> None:
    """hiyouga/LlamaFactory#2752, #6736; shibing624/MedicalGPT#157: <|im_end|> is cut off, and never learnt."""
    tokenizer = Tokenizer.load(qwen_vocabulary())
    talk = [{"role": "system", "content": "Be brief."}]
    for turn in range(20):
        talk += [{"role": "user", "content": f"question {turn}"}, {"role": "assistant", "content": "answer " * 20}]
    end = tokenizer.id_of("<|im_end|>")
    for budget in (60, 200, 500):
        kept, dropped = fit(tokenizer, talk, budget)
        ids = tokenizer.chat(kept, add_generation_prompt=False)
        assert dropped and len(ids) <= budget and ids.count(end) == len(kept) and ids[-2] == end


def test_25_both_forms_of_conversations_are_read_alike(tmp_path: Path) -> None:
    """axolotl-ai-cloud/axolotl#2089, #1649, #1654: ShareGPT's form was renamed away. Read so far where models are
    quantised."""
    said = [("system", "system", "Be brief."), ("human", "user", "Hi"), ("gpt", "assistant", "Hello")]
    forms: list[Any] = [
        {"conversations": [{"from": old, "value": text} for old, _, text in said]},
        {"conversations": [{"from": new, "value": text} for _, new, text in said]},
        {"messages": [{"role": new, "content": text} for _, new, text in said]},
    ]
    want = [{"role": new, "content": text} for _, new, text in said]
    lines = "\n".join(map(json.dumps, forms)).encode()
    assert conversations(json.dumps(forms).encode(), tmp_path / "a.json") == [want] * 3
    assert conversations(lines, tmp_path / "a.jsonl") == [want] * 3


def test_26_exports_open_in_transformers_and_are_served_here(exported: Path) -> None:
    """Lightning-AI/litgpt#1086, #1060, #1908: no export to Hugging Face's form, and another server's API. 6 greedy tokens
    of one folder; float32 in both."""
    assert not list(exported.glob("*.py")) and "auto_map" not in (exported / "config.json").read_text()
    network = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32, trust_remote_code=False).eval()
    prompt, greedy = [9707, 1879, 13, 100], {"temperature": 0, "repetition_penalty": 1.0, "ignore_eos": True}
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
    with served(kiloq.load(exported, weights="fp32")) as server:
        done = server.service.model.generate(prompt, max_new_tokens=6, **greedy)
        assert done.ids == tuple(ids[4:])
        answer = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 6, **greedy}).json()
        assert answer["choices"][0]["text"] == done.text


def test_28_conversations_can_be_taken_along_from_the_page() -> None:
    """ggml-org/llama.cpp#11718, #16131, #13570: no import or export, no name of the model. In a browser, against the stub
    of tests/serve/ui, whose other checks are about the rest of the page."""
    here = Path(__file__).parent / "ui"
    node = shutil.which("node") or pytest.skip("node is not here: install Node.js 20 or newer to run this test")
    browser = os.environ.get("KILOQ_CHROMIUM") or shutil.which("chromium") or pytest.skip("chromium is not here")
    if not (here / "node_modules" / "playwright-core").is_dir():
        pytest.skip(f"playwright-core is not here: run `npm ci` in {here}")
    stub = subprocess.Popen([sys.executable, "stub.py", "0"], cwd=here, stdout=subprocess.PIPE, text=True)
    try:
        assert stub.stdout is not None
        address = stub.stdout.readline().strip().rstrip("/")
        command = [node, "browser.mjs", address, browser, "export_and_import_are_a_round_trip"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and json.loads(done.stdout)["ok"], done.stdout + done.stderr
    finally:
        stub.kill()
        stub.communicate()


def test_29_the_terminal_has_history_and_commands(tmp_path: Path) -> None:
    """ggml-org/llama.cpp#15502, vllm-project/vllm#21091."""
    child = spawn(["chat", "echo"], tmp_path)
    prompt = "\x1b[?2004h"  # it can be typed into
    child.expect_exact(prompt)
    for line in ("first", "second"):
        child.sendline(line)
        child.expect_exact(f"echo: {line}\r\n")
        child.expect_exact(prompt)
    child.send("\x1b[A\x1b[A\r")  # twice up
    child.expect_exact("echo: first\r\n")
    child.expect_exact(prompt)
    child.sendline("/history")
    child.expect_exact("second")
    child.expect_exact(prompt)
    child.sendline(":q")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_32_a_processor_is_enough_and_torch_is_not_needed() -> None:
    """karpathy/nanochat#145, #17. (The rest of the proof: all tests run on processors.)"""
    program = (
        "import sys, kiloq, kiloq.serve.app, kiloq.serve.command; model = kiloq.load(sys.argv[1]);"
        "print(model.device, model.backend, len(model.generate('Hi', max_new_tokens=3).ids), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(default_model())], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["cpu", "native", "3", "False"], done.stderr
