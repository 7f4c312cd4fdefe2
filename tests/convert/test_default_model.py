"""SmolLM2 on its whole way: GGUF -> folder -> transformers, and -> GGUF in float32 -> llama.cpp, with the same 64 greedy ids.

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

from kiloq.convert.source import open_model
from kiloq.convert.write_gguf import write_gguf_file

pytestmark = pytest.mark.default_model
PROMPT = "The capital of France is Paris. The capital of Germany is"


def test_the_folder_holds_the_exact_values() -> None:
    quantised, folder = open_model(smollm2_gguf()), open_model(default_model())
    assert quantised.quantised
    assert not folder.quantised
    assert folder.config == quantised.config
    assert folder.parameters() == 134_515_008
    for name in (*quantised.names()[:10], "norm.weight"):
        np.testing.assert_array_equal(folder.tensor(name), quantised.tensor(name))


def test_transformers_and_llama_cpp_give_the_same_64_greedy_ids(tmp_path: Path) -> None:
    folder = default_model()
    prompt = AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answer = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=64,
        min_new_tokens=64,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    two = torch.stack(answer.logits)[:, 0].topk(2).values
    assert float((two[:, 0] - two[:, 1]).min()) > 1e-3
    expected = answer.sequences[0, len(prompt) :].tolist()
    write_gguf_file(open_model(folder), tmp_path / "smollm2.gguf", "f32")
    assert greedy_ids(tmp_path / "smollm2.gguf", prompt, 64, []) == expected
