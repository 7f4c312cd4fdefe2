"""GGUF of architecture `qwen` (Qwen-1 as llama.cpp stores it) and metadata in the forms that real files use."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from oracles.llama_cpp import server
from oracles.tiny_models import save, save_tokenizer, tiny
from safetensors.numpy import load_file
from support import shared

from kiloq.convert.layout import llama_rows, neox_rows
from kiloq.convert.source import ModelSource, open_model
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.gguf import GGUFFile
from kiloq.core.gguf_write import GGUFTensor, write_gguf


def as_arch_qwen(source: ModelSource, plain: GGUFFile, path: Path) -> None:
    """`plain` (arch qwen2) again as arch `qwen`: fused projections, feed_forward_length doubled."""
    metadata = {key.replace("qwen2.", "qwen."): value for key, value in plain.metadata.items()}
    metadata |= {"general.architecture": "qwen", "qwen.feed_forward_length": 2 * source.config.ffn_size}
    for key in ("head_count_kv", "key_length", "value_length"):
        del metadata[f"qwen.attention.{key}"]
    for key in [key for key, value in metadata.items() if isinstance(value, list) and isinstance(value[0], int)]:
        metadata[key] = np.array(metadata[key], np.int32)
    tensors = []
    for name in plain.names():
        if ".attn_q." in name:
            thirds = [plain.array(name.replace("attn_q.", f"attn_{which}.")) for which in "qkv"]
            fused = np.concatenate(thirds)
            tensors.append(GGUFTensor(name.replace("attn_q.", "attn_qkv."), "F32", fused.shape, lambda a=fused: a))
        elif ".attn_k." not in name and ".attn_v." not in name:
            array = plain.array(name)
            tensors.append(GGUFTensor(name, "F32", array.shape, lambda a=array: a))
    write_gguf(path, metadata, tensors)


def test_arch_qwen_is_read_as_llama_cpp_computes_it(tmp_path: Path) -> None:
    shutil.copytree(shared("goldens", "model", "m18b"), tmp_path / "in")
    (tmp_path / "in").chmod(0o755)
    save_tokenizer(tmp_path / "in")
    source = open_model(tmp_path / "in")
    write_gguf_file(source, tmp_path / "plain.gguf", "f32")
    as_arch_qwen(source, GGUFFile(tmp_path / "plain.gguf"), tmp_path / "qwen.gguf")
    again = open_model(tmp_path / "qwen.gguf")
    assert again.metadata["general.architecture"] == "qwen"
    assert again.config == source.config.replace(init_std=again.config.init_std)
    assert again.names() == source.names()
    for name in source.names():
        np.testing.assert_array_equal(again.tensor(name), source.tensor(name))
    golden = load_file(shared("goldens", "model", "m18b", "golden.safetensors"))
    ids, logits = golden["short.input_ids"][0].tolist(), golden["short.logits"][0]
    llama, compared = server(tmp_path / "qwen.gguf"), 0
    for length in range(6, 25, 2):
        request = {"prompt": ids[:length], "n_predict": 1, "temperature": 0.0, "logprobs": 5, "n_probs": 5}
        expected = logits[length - 1] - np.logaddexp.reduce(logits[length - 1].astype(np.float64))
        for token in llama.handle_completions(request)["choices"][0]["logprobs"]["content"]:
            for row in token["top_logprobs"]:
                assert row["logprob"] == pytest.approx(expected[row["id"]], abs=1e-4)
                compared += 1
    assert compared >= 10


def test_head_counts_stored_once_per_layer(tmp_path: Path) -> None:
    source = open_model(save(tiny("llama"), tmp_path / "in"))
    write_gguf_file(source, tmp_path / "a.gguf", "f32")
    file = GGUFFile(tmp_path / "a.gguf")
    per_layer = {"llama.attention.head_count": np.array([4, 4], np.int32)}
    per_layer |= {"llama.attention.head_count_kv": np.array([2, 2], np.int32)}
    tensors = [GGUFTensor(n, file.info(n)[0], file.info(n)[1], lambda n=n: file.raw(n)) for n in file.names()]
    write_gguf(tmp_path / "b.gguf", dict(file.metadata) | per_layer, tensors)
    assert open_model(tmp_path / "b.gguf").config == open_model(tmp_path / "a.gguf").config


@pytest.mark.parametrize("shape", [(12, 3), (12,), (24, 1)])
def test_row_orders_are_inverse(shape: tuple[int, ...]) -> None:
    rows = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(neox_rows(llama_rows(rows, 2), 2), rows)
    pairs = llama_rows(np.arange(8), 2)
    assert pairs.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]  # i beside i + d/2, head by head
