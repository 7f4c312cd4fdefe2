"""`open_model` on folders that transformers wrote: equal tensors, equal numbers through our network, every known key.

Tolerance of logits: float32 with additions in another order, 2e-5 at logits of size 5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.tiny_models import SIZES, save, tiny

from kiloq.convert.source import ModelSource, open_model
from kiloq.convert.write import write_folder
from kiloq.core.errors import FormatError, MissingError
from kiloq.model.network import Network

# kind, changes of the transformers config, fields of ours that must follow
SHAPES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {}, {"qkv_bias": False, "qk_norm": False}),
    ("llama", {"attention_bias": True, "mlp_bias": True}, {"qkv_bias": True, "output_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True, "head_dim": 32}, {"tied_embeddings": True, "head_dim": 32}),
    ("qwen2", {}, {"qkv_bias": True, "output_bias": False}),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}, {"num_kv_heads": 4}),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_base": 1e6}),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
        {"windows": (None, 3)},
    ),
    ("mistral", {"sliding_window": 4, "head_dim": 16}, {"windows": (4, 4), "qkv_bias": False}),
    ("mistral", {"sliding_window": None, "head_dim": 16}, {"windows": ()}),
    ("qwen3", {"head_dim": 32}, {"qk_norm": True, "head_dim": 32, "qkv_bias": False}),
    ("qwen3", {"head_dim": 16, "attention_bias": True}, {"qkv_bias": True, "output_bias": True}),
]
IDS = [7, 3, 99, 250, 8, 8, 1, 42]


def network(source: ModelSource) -> Network:
    """Our reference network with the source's weights in float32."""
    model = Network(source.config)
    state = {name: torch.from_numpy(source.tensor(name).astype(np.float32)) for name in source.names()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return model.eval()


def our_logits(source: ModelSource) -> np.ndarray:
    with torch.no_grad():
        return network(source)(torch.tensor([IDS]))[0].numpy()


def their_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].float().numpy()


@pytest.mark.parametrize(("kind", "changes", "fields"), SHAPES)
def test_transformers_folders(kind: str, changes: dict[str, Any], fields: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(kind, **changes)
    source = open_model(save(model, tmp_path / "in"))
    assert (source.kind, source.dtype, source.quantised) == ("hf", "fp32", False)
    for name, value in fields.items():
        assert getattr(source.config, name) == value, name
    state = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    if source.config.tied_embeddings:
        del state["lm_head.weight"]
    assert set(source.names()) == set(state)
    for name, tensor in state.items():
        assert source.tensor(name).shape == source.shape(name)
        np.testing.assert_array_equal(source.tensor(name), tensor.numpy())
    assert source.parameters() == sum(tensor.numel() for tensor in state.values())
    np.testing.assert_allclose(our_logits(source), their_logits(model), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("kind", "changes", "fields"), SHAPES)
@pytest.mark.parametrize("layout", ["qwen2", "native"])
def test_written_folders_compute_the_same_in_transformers(
    kind: str, changes: dict[str, Any], fields: dict[str, Any], layout: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny(kind, **changes)
    write_folder(open_model(save(model, tmp_path / "in")), tmp_path / "out", layout)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    if layout == "native" or kind == "qwen3":
        same = {("mistral", ()): "LlamaForCausalLM"}  # without a window there is no difference
        assert config["architectures"] == [same.get((kind, fields.get("windows")), type(model).__name__)]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    np.testing.assert_allclose(their_logits(again), their_logits(model), atol=1e-6, rtol=0)
    reopened = open_model(tmp_path / "out")
    np.testing.assert_allclose(our_logits(reopened), their_logits(model), atol=2e-5, rtol=0)


def test_grouped_tied_llama_expands_exactly_to_qwen1(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny("llama", tie_word_embeddings=True)
    write_folder(open_model(save(model, tmp_path / "in")), tmp_path / "one", "qwen1")
    one = open_model(tmp_path / "one")
    assert one.kind == "qwen1"
    assert (one.config.num_kv_heads, one.config.tied_embeddings, one.config.qkv_bias) == (4, False, True)
    assert not (one.config.dynamic_ntk or one.config.logn)
    write_folder(one, tmp_path / "two", "qwen2")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "two", dtype=torch.float32).eval()
    assert type(back).__name__ == "Qwen2ForCausalLM"
    np.testing.assert_allclose(their_logits(back), their_logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_mapped_as_it_is(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny("qwen2").to(dtype)
    source = open_model(save(model, tmp_path / "in", max_shard_size="100KB"))
    assert (tmp_path / "in" / "model.safetensors.index.json").exists()
    assert source.dtype == {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(
            source.tensor(name.removeprefix("model.")).astype(np.float32), tensor.float().numpy()
        )
    assert source.tensor("embed_tokens.weight").base is not None  # a view, not a copy


def test_dtype_conversions_round_as_torch(tmp_path: Path) -> None:
    model = tiny("qwen2")
    source = open_model(save(model, tmp_path / "in"))
    for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16}.items():
        write_folder(source, tmp_path / name, dtype=name)
        again = open_model(tmp_path / name)
        assert again.dtype == name
        for key, tensor in model.state_dict().items():
            values = again.tensor(key.removeprefix("model.")).astype(np.float32)
            np.testing.assert_array_equal(values, tensor.to(dtype).float().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bin_files_are_read_with_weights_only(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny("qwen2").to(dtype)
    folder = save(model, tmp_path / "in")
    expected = open_model(folder)
    values = {name: expected.tensor(name).copy() for name in expected.names()}
    (folder / "model.safetensors").unlink()
    state = dict(model.state_dict()) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for shard, part in shards.items():
        torch.save({name: state[name] for name in part}, folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    source = open_model(folder)
    for name, value in values.items():
        assert source.tensor(name).dtype == value.dtype
        np.testing.assert_array_equal(source.tensor(name), value)


def test_the_hub_cache_is_followed_and_nothing_else(tmp_path: Path) -> None:
    original = save(tiny("qwen2"), tmp_path / "original")
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "rev"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in original.iterdir():
        (blobs / f"hash-{path.name}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"hash-{path.name}")
    assert open_model(snapshot).parameters() == open_model(original).parameters()
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(original / "model.safetensors")
    with pytest.raises(FormatError, match="symlink that leaves"):
        open_model(snapshot)


def test_auto_map_is_said_and_ignored(tmp_path: Path) -> None:
    folder = save(tiny("qwen2"), tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    source = open_model(folder)
    assert any("auto_map" in warning for warning in source.warnings)
    assert not (tmp_path / "canary").exists()


def test_nan_weights_are_a_warning(tmp_path: Path) -> None:
    model = tiny("qwen2")
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    source = open_model(save(model, tmp_path / "in"))
    assert source.check_finite() == ["layers.1.mlp.up_proj.weight", "norm.weight"]
    assert "NaN" in source.warnings[-1]
    assert open_model(save(tiny("qwen2"), tmp_path / "good")).check_finite() == []


def test_generation_defaults(tmp_path: Path) -> None:
    folder = save(tiny("qwen2"), tmp_path / "in")
    values = {
        "eos_token_id": [5, 6],
        "pad_token_id": 5,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "do_sample": True,
    }
    (folder / "generation_config.json").write_text(json.dumps(values | {"repetition_penalty": 1.05}))
    defaults = open_model(folder).generation
    assert (defaults.eos_ids, defaults.pad_id, defaults.temperature, defaults.top_k) == ((5, 6), 5, 0.7, 20)
    write_folder(open_model(folder), tmp_path / "out")
    assert open_model(tmp_path / "out").generation == defaults


def test_own_keys_survive_a_round_trip(tmp_path: Path) -> None:
    source = open_model(save(tiny("qwen2", num_hidden_layers=3), tmp_path / "in"))
    source.config = source.config.replace(dynamic_ntk=True, logn=True, train_length=32, windows=(4, None, 9))
    notes = write_folder(source, tmp_path / "out").notes
    assert open_model(tmp_path / "out").config == source.config
    assert len([note for note in notes if "cannot be expressed" in note]) == 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 32


def test_a_tokenizer_survives_conversion(tmp_path: Path) -> None:
    from kiloq.tokenize.tokenizer import Tokenizer

    folder = save(tiny("qwen2"), tmp_path / "in", tokenizer=True)
    for layout in ("qwen2", "qwen1"):
        write_folder(open_model(folder), tmp_path / layout, layout)
        before, after = Tokenizer.load(folder), Tokenizer.load(tmp_path / layout)
        assert after.special_tokens == before.special_tokens
        assert after.vocab_size == before.vocab_size
        assert after.encode("hello a 层", special="all") == before.encode("hello a 层", special="all")


REFUSED = {
    "mixture of experts": {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe"},
    "experts by key": {"num_experts": 8},
    "another model": {"architectures": ["GPT2LMHeadModel"]},
    "no architecture": {"architectures": [], "model_type": "mamba"},
    "gelu": {"hidden_act": "gelu"},
    "two types of rope": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "longrope": {"rope_parameters": {"rope_type": "longrope", "long_factor": [2.0], "short_factor": [1.0]}},
    "dynamic rope": {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama3 rope without its numbers": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
    "quantised": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "layers that attend otherwise": {"layer_types": ["full_attention", "linear_attention"]},
    "text for a number": {"hidden_size": "64"},
    "fractional size": {"hidden_size": 64.5},
    "negative size": {"intermediate_size": -96},
    "zero heads": {"num_attention_heads": 0},
    "too many layers": {"num_hidden_layers": 10**9},
    "huge vocabulary": {"vocab_size": 2**62},
    "heads that do not divide": {"num_key_value_heads": 3},
    "epsilon of zero": {"rms_norm_eps": 0},
    "list for an object": {"rope_parameters": [1]},
    "object for a list": {"architectures": {"0": "Qwen2ForCausalLM"}},
    "number in architectures": {"architectures": [3]},
    "windows of text": {"kiloq": {"windows": ["a", "b"]}},
    "too few windows": {"kiloq": {"windows": [1]}},
    "own key is a list": {"kiloq": []},
    "trained on nothing": {"kiloq": {"train_length": 0}},
    "rotary share above one": {"partial_rotary_factor": 2.0},
    "part of the head rotated, which the class ignores": {"partial_rotary_factor": 0.5},
    "huge rotary share": {"rope_parameters": {"rope_type": "kiloq_partial", "partial_rotary_factor": 1e308}},
    "no rotary share": {"rope_parameters": {"rope_type": "kiloq_partial", "partial_rotary_factor": 0}},
}


@pytest.mark.parametrize("fault", REFUSED)
def test_configurations_that_are_not_computed_are_refused(fault: str, tmp_path: Path) -> None:
    folder = save(tiny("qwen2"), tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | REFUSED[fault]))
    with pytest.raises(FormatError) as caught:
        open_model(folder)
    assert str(caught.value).startswith(str(folder / "config.json"))
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such model"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(MissingError, match=r"config\.json"):
        open_model(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FormatError, match="neither"):
        open_model(tmp_path / "notes.txt")
    folder = save(tiny("qwen2"), tmp_path / "in")
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"model\.safetensors"):
        open_model(folder)
    assert SIZES["num_hidden_layers"] == 2
