"""Folders that we write, opened by transformers: logits against the original's outputs and against the source model.

Tolerances: float32 on one machine, another order of additions: 1e-5 against the original (its logits are of size 5),
0 for tensors that only change their name.
"""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.llama_cpp import server
from safetensors.numpy import load_file
from support import qwen_vocabulary, shared
from transformers import AutoModelForCausalLM

from kiloq.convert.source import open_model
from kiloq.convert.write import write_folder
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import FormatError, UsageError
from kiloq.core.gguf import GGUFFile
from kiloq.core.manifest import verify_manifest
from kiloq.core.safetensors import SafetensorsFile
from kiloq.model.config import ModelConfig

CASES = ["m18b", "m7b", "m14b", "m72b", "logn"]


def golden_folder(case: str, tmp_path: Path) -> Path:
    """The golden model folder; `real` is stored compressed and is unpacked into `tmp_path`."""
    folder = shared("goldens", "model", case)
    packed = folder / "model.safetensors.xz"
    if not packed.exists():
        return folder
    copy = tmp_path / case
    copy.mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copy(folder / name, copy / name)
    with lzma.open(packed) as source, (copy / "model.safetensors").open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy


def hf_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """float32 logits [T, V] of the folder in transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("case", CASES)
def test_qwen1_to_qwen2_gives_the_original_logits(case: str, tmp_path: Path) -> None:
    source = open_model(golden_folder(case, tmp_path))
    written = write_folder(source, tmp_path / "out", "qwen2")
    golden = load_file(shared("goldens", "model", case, "golden.safetensors"))
    ids = golden["short.input_ids"][0].tolist()
    assert len(ids) <= source.config.train_length
    np.testing.assert_allclose(hf_logits(tmp_path / "out", ids), golden["short.logits"][0], atol=1e-5, rtol=0)
    said = any("cannot be expressed" in note for note in written.notes)
    assert said == (source.config.dynamic_ntk or source.config.logn)
    assert ("cannot be expressed" in (tmp_path / "out" / "README.md").read_text()) == said
    verify_manifest(tmp_path / "out")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden chat model with the whole vocabulary of Qwen, as its owner would have it on disk."""
    folder = golden_folder("real", tmp_path_factory.mktemp("real"))
    shutil.copy(qwen_vocabulary(), folder / "qwen.tiktoken")
    return folder


def test_a_chat_model_with_its_tokenizer(real: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_folder(open_model(real), tmp_path / "out", "qwen2")
    golden = load_file(shared("goldens", "model", "real", "golden.safetensors"))
    logits = hf_logits(tmp_path / "out", golden["short.input_ids"][0].tolist())
    columns = golden["vocab_cols"]
    np.testing.assert_allclose(logits[:, columns], golden["short.logits.cols"][0], atol=1e-5, rtol=0)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [151645, 151643]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("<|im_start|>你好 world")["input_ids"] == [151644, 108386, 1879]
    assert tokenizer.eos_token_id in (151643, 151645)
    write_folder(open_model(tmp_path / "out"), tmp_path / "back", "qwen1")
    assert (tmp_path / "back" / "qwen.tiktoken").read_bytes() == (real / "qwen.tiktoken").read_bytes()
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text())["eos_token_id"] == 151643


def test_its_gguf_gives_the_original_logits_in_llama_cpp(real: Path, tmp_path: Path) -> None:
    write_gguf_file(open_model(real), tmp_path / "out.gguf", "f32")
    metadata = GGUFFile(tmp_path / "out.gguf").metadata
    assert len(metadata["tokenizer.ggml.tokens"]) == 151_936
    assert len(metadata["tokenizer.ggml.merges"]) == 151_387
    assert (metadata["tokenizer.ggml.eos_token_id"], metadata["tokenizer.ggml.eot_token_id"]) == (151645, 151645)
    golden = load_file(shared("goldens", "model", "real", "golden.safetensors"))
    ids, lse = golden["short.input_ids"][0].tolist(), golden["short.logits.lse"][0]
    llama, compared = server(tmp_path / "out.gguf"), 0
    for length in range(8, 25, 2):
        request = {"prompt": ids[:length], "n_predict": 1, "temperature": 0.0, "logprobs": 5, "n_probs": 5}
        for token in llama.handle_completions(request)["choices"][0]["logprobs"]["content"]:
            theirs = {row["id"]: row["logprob"] for row in token["top_logprobs"]}
            top = zip(
                golden["short.logits.top_i"][0][length - 1], golden["short.logits.top_v"][0][length - 1], strict=True
            )
            for number, value in list(top)[:5]:
                assert theirs[int(number)] == pytest.approx(value - lse[length - 1], abs=1e-3)
                compared += 1
    assert compared >= 10  # a first token that is a piece of a character is not reported


def test_partial_rotary_is_refused_by_others_rather_than_computed_wrong(tmp_path: Path) -> None:
    notes = write_folder(open_model(golden_folder("odd", tmp_path)), tmp_path / "out").notes
    assert any("only kiloq opens" in note for note in notes)
    with pytest.raises(KeyError, match="kiloq_partial"):
        hf_logits(tmp_path / "out", [1, 2, 3])


@pytest.mark.parametrize("case", [*CASES, "odd"])
def test_qwen1_round_trip_is_bit_identical(case: str, tmp_path: Path) -> None:
    source = open_model(golden_folder(case, tmp_path))
    write_folder(source, tmp_path / "middle", "qwen2", shard_bytes=200_000)
    write_folder(open_model(tmp_path / "middle"), tmp_path / "back", "qwen1")
    before = {}
    for path in source.path.glob("model*.safetensors"):
        file = SafetensorsFile(path)
        before |= {name: file.array(name) for name in file.names()}
    after = SafetensorsFile(tmp_path / "back" / "model.safetensors")
    assert set(after.names()) == set(before)
    for name, array in before.items():
        assert after.array(name).dtype == array.dtype
        assert after.array(name).tobytes() == array.tobytes(), name
    assert open_model(tmp_path / "back").config == source.config


def test_shards_have_an_index_that_transformers_reads(tmp_path: Path) -> None:
    source = open_model(golden_folder("m18b", tmp_path))
    write_folder(source, tmp_path / "out", shard_bytes=100_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert len(shards) > 3
    assert index["metadata"]["total_size"] == 4 * source.parameters()
    golden = load_file(shared("goldens", "model", "m18b", "golden.safetensors"))
    logits = hf_logits(tmp_path / "out", golden["short.input_ids"][0].tolist())
    np.testing.assert_allclose(logits, golden["short.logits"][0], atol=1e-5, rtol=0)


def test_unknown_layout_dtype_and_foreign_target_are_refused(tmp_path: Path) -> None:
    source = open_model(golden_folder("m18b", tmp_path))
    with pytest.raises(UsageError, match="layout"):
        write_folder(source, tmp_path / "out", "qwen3")
    with pytest.raises(UsageError, match="dtype"):
        write_folder(source, tmp_path / "out", dtype="int8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(UsageError, match="not written by kiloq"):
        write_folder(source, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_an_export_of_ours_is_replaced(tmp_path: Path) -> None:
    source = open_model(golden_folder("m18b", tmp_path))
    write_folder(source, tmp_path / "out", "qwen2", "bf16")
    write_folder(source, tmp_path / "out", "qwen2", "fp32")
    assert open_model(tmp_path / "out").dtype == "fp32"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_fp16_refuses_values_that_do_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(golden_folder("m18b", tmp_path), folder)
    (folder / "model.safetensors").chmod(0o644)
    weights = {name: array.copy() for name, array in load_file(folder / "model.safetensors").items()}
    weights["transformer.ln_f.weight"][0] = 1e6
    from safetensors.numpy import save_file

    save_file(weights, folder / "model.safetensors")
    with pytest.raises(FormatError, match="fp16"):
        write_folder(open_model(folder), tmp_path / "out", dtype="fp16")
    assert not (tmp_path / "out").exists()


def test_what_qwen1_cannot_say_is_refused() -> None:
    from kiloq.convert import qwen1

    small = ModelConfig(vocab_size=8, hidden_size=8, num_layers=1, num_heads=2, ffn_size=4)
    for change in ({"qk_norm": True}, {"head_dim": 8}, {"windows": (3,)}):
        with pytest.raises(FormatError, match="Qwen-1"):
            qwen1.expressible(small.replace(**change))
