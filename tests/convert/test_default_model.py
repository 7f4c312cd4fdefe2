"""SmolLM2 on its whole way: GGUF -> folder in float32 -> kiloq and transformers, and -> GGUF in float32 -> llama.cpp: the same 64 ids.

The margin of the two best logits is checked, because llama.cpp adds in another order (differences up to 1e-4).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.llama_cpp import greedy_ids
from support import default_model, smollm2_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

import kiloq
from kiloq.convert.source import open_model
from kiloq.convert.write import write_folder
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.generate.records import Completion

pytestmark = pytest.mark.default_model
PROMPT = "The capital of France is Paris. The capital of Germany is"


def test_the_folder_holds_the_very_integers() -> None:
    file, folder = open_model(smollm2_gguf()), open_model(default_model())
    assert folder.quantised
    assert folder.config == file.config
    assert folder.parameters() == 134_515_008
    assert folder.stored_types() == file.stored_types()
    for name in (*file.names()[:10], "norm.weight"):
        np.testing.assert_array_equal(folder.tensor(name), file.tensor(name))


@pytest.mark.timeout(300)  # 20 s alone; torch and llama.cpp spin where other processes hold the cores
def test_we_llama_cpp_and_transformers_give_the_same_64_greedy_ids(tmp_path: Path) -> None:
    folder = tmp_path / "fp32"
    write_folder(open_model(default_model()), folder, "native", "fp32")
    ours = kiloq.load(str(folder), weights="fp32", device="cpu")
    prompt = AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]
    assert prompt == ours.tokenizer.encode(PROMPT)
    answer = ours.generate(prompt, max_new_tokens=64, min_new_tokens=64, temperature=0, repetition_penalty=1.0)
    assert isinstance(answer, Completion)
    ids = list(answer.ids)
    assert len(ids) == 64
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    logits[:, list(ours.tokenizer.eos_ids)] = -torch.inf  # as min_new_tokens and llama.cpp's ignore_eos do
    two = logits.topk(2)
    assert two.indices[:, 0].tolist() == ids
    assert float((two.values[:, 0] - two.values[:, 1]).min()) > 1e-3
    write_gguf_file(open_model(folder), tmp_path / "smollm2.gguf", "f32")
    assert greedy_ids(tmp_path / "smollm2.gguf", prompt, 64, []) == ids
