"""GGUF that we write and read, against llama.cpp itself and the `gguf` package.

llama.cpp computes in float32 with other orders of addition: greedy ids are compared where the two best logits are
further apart than 1e-3 on the whole way, which the seeds below give.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from convert.test_source import our_logits, their_logits
from oracles.llama_cpp import greedy_ids
from oracles.tiny_models import greedy, not_ascii, save, tiny

from kiloq.convert.generation import GenerationDefaults, gguf_sampling
from kiloq.convert.source import open_model
from kiloq.convert.write import write_folder
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import FormatError, UsageError
from kiloq.core.gguf import GGUFFile

PROMPT = [5, 9, 200, 17]
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "grouped qwen2": ("qwen2", {}, "qwen2"),
    "tied qwen2": ("qwen2", {"tie_word_embeddings": True}, "qwen2"),
    "llama": ("llama", {}, "llama"),
    "tied llama with all biases": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        "llama",
    ),
    "qwen3 with wide heads": ("qwen3", {"head_dim": 32}, "qwen3"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_gives_the_same_64_greedy_ids(kind: str, tmp_path: Path) -> None:
    name, changes, arch = KINDS[kind]
    model = tiny(name, seed=2, **changes)
    source = open_model(save(model, tmp_path / "in", tokenizer=True))
    write_gguf_file(source, tmp_path / "out.gguf", "f32")
    assert GGUFFile(tmp_path / "out.gguf").metadata["general.architecture"] == arch
    expected, margin = greedy(model, PROMPT, 64, not_ascii())
    assert margin > 1e-3, "choose another seed"
    assert greedy_ids(tmp_path / "out.gguf", PROMPT, 64, not_ascii()) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_reading_back_is_bit_identical(kind: str, tmp_path: Path) -> None:
    name, changes, _ = KINDS[kind]
    source = open_model(save(tiny(name, **changes), tmp_path / "in", tokenizer=True))
    write_gguf_file(source, tmp_path / "out.gguf", "f32")
    again = open_model(tmp_path / "out.gguf")
    assert again.config == source.config.replace(init_std=again.config.init_std)
    for key in source.names():
        np.testing.assert_array_equal(again.tensor(key), source.tensor(key))
    write_folder(again, tmp_path / "native", "native")
    assert open_model(tmp_path / "native").config == again.config


def test_ntk_and_logn_are_noted_and_survive(tmp_path: Path) -> None:
    source = open_model(save(tiny("qwen2"), tmp_path / "in", tokenizer=True))
    source.config = source.config.replace(dynamic_ntk=True, logn=True, train_length=32)
    notes = write_gguf_file(source, tmp_path / "out.gguf", "f32").notes
    assert len(notes) == 1
    assert "cannot be expressed" in notes[0]
    again = open_model(tmp_path / "out.gguf").config
    assert (again.dynamic_ntk, again.logn, again.train_length, again.max_length) == (True, True, 32, 128)
    assert GGUFFile(tmp_path / "out.gguf").metadata["qwen2.context_length"] == 32


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_every_type_equals_the_gguf_package(dtype: str, tmp_path: Path) -> None:
    # 80 columns are no multiple of 32: those matrices stay f16 in the block types.
    source = open_model(save(tiny("llama", intermediate_size=80), tmp_path / "in", tokenizer=True))
    write_gguf_file(source, tmp_path / "out.gguf", dtype)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    f32 = write_gguf_file(source, tmp_path / "f32.gguf", "f32")
    values = GGUFFile(f32.path)
    assert {tensor.name for tensor in reader.tensors} == set(values.names())
    kinds = set()
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        array = values.array(tensor.name)
        expected = gguf.quants.quantize(array, kind)
        assert np.asarray(tensor.data).tobytes() == np.ascontiguousarray(expected).tobytes(), tensor.name
        kinds.add(kind.name)
        assert (kind.name == "F32") or array.ndim == 2
        if "ffn_down" in tensor.name and dtype.startswith("q"):
            assert kind.name == "F16"
    assert (
        kinds
        == {
            "f32": {"F32"},
            "f16": {"F32", "F16"},
            "bf16": {"F32", "BF16"},
            "q8_0": {"F32", "Q8_0", "F16"},
            "q4_0": {"F32", "Q8_0", "Q4_0", "F16"},
        }[dtype]
    )
    assert greedy_ids(tmp_path / "out.gguf", PROMPT, 4, not_ascii())  # llama.cpp loads and runs it


def test_quantised_logits_are_near(tmp_path: Path) -> None:
    model = tiny("qwen2")
    source = open_model(save(model, tmp_path / "in", tokenizer=True))
    for dtype, tolerance in {"q8_0": 0.05, "q4_0": 0.4}.items():  # mean error per unit of spread
        write_gguf_file(source, tmp_path / f"{dtype}.gguf", dtype)
        quantised = open_model(tmp_path / f"{dtype}.gguf")
        assert quantised.quantised
        error = np.abs(our_logits(quantised) - their_logits(model)).mean() / their_logits(model).std()
        assert error < tolerance


def test_tokenizer_metadata(tmp_path: Path) -> None:
    source = open_model(save(tiny("qwen2"), tmp_path / "in", tokenizer=True))
    write_gguf_file(source, tmp_path / "out.gguf", "f16")
    meta = GGUFFile(tmp_path / "out.gguf").metadata
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 320
    assert len(set(tokens)) == 320
    assert tokens[260:263] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert types[259:264] == [1, 3, 3, 3, 5]
    assert tokens[319] == "[PAD319]"
    assert meta["tokenizer.ggml.merges"] == ["h e", "l l", "he ll", "Ġ a"]
    assert meta["tokenizer.ggml.pre"] == "qwen2"
    assert meta["tokenizer.ggml.eos_token_id"] in (260, 262)
    assert meta["tokenizer.ggml.eot_token_id"] == 262
    assert meta["tokenizer.ggml.add_bos_token"] is False


def test_what_gguf_cannot_say_is_refused(tmp_path: Path) -> None:
    source = open_model(save(tiny("qwen3", head_dim=16, attention_bias=True), tmp_path / "in"))
    with pytest.raises(FormatError, match="qwen3 has no biases"):
        write_gguf_file(source, tmp_path / "out.gguf", "f32")
    source = open_model(save(tiny("qwen2"), tmp_path / "two"))
    with pytest.raises(UsageError, match="dtype"):
        write_gguf_file(source, tmp_path / "out.gguf", "q3_k")
    with pytest.raises(UsageError, match="folder"):
        write_gguf_file(source, tmp_path, "f32")
    source.config = source.config.replace(windows=(3, None))
    with pytest.raises(FormatError, match="windows"):
        write_gguf_file(source, tmp_path / "out.gguf", "f32")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"do_sample": False, "repetition_penalty": 1.1}, {"temperature": 0.0, "repetition_penalty": 1.1}),
        ({"temperature": 0.5, "top_p": 0.75, "top_k": 20}, {"temperature": 0.5, "top_p": 0.75, "top_k": 20}),
        ({}, {}),
    ],
)
def test_sampling_defaults_travel_in_the_file(config: dict[str, Any], kept: dict[str, Any], tmp_path: Path) -> None:
    """Under llama.cpp's own keys; greedy is temperature 0 there. GGUF numbers are float32."""
    folder = save(tiny("qwen2"), tmp_path / "in", tokenizer=True)
    (folder / "generation_config.json").write_text(json.dumps(config))
    write_gguf_file(open_model(folder), tmp_path / "out.gguf", "f32")
    read = open_model(tmp_path / "out.gguf").generation
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        want = kept.get(name)
        assert getattr(read, name) == (want if want is None else pytest.approx(want, rel=1e-6))
    assert gguf.Keys.General.SAMPLING_TEMP in gguf_sampling(GenerationDefaults(temperature=1.0))
