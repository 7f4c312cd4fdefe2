"""Rope scaling through every door: transformers' folders in all spellings, back into folders, GGUF and llama.cpp.

Logits beside transformers: 1e-4, float32 with additions in another order. llama.cpp: the same greedy ids on a way
whose best logit leads by more than 1e-3, and log-probabilities within 1e-3 where ids alone could hide a small error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert.test_source import network
from oracles.llama_cpp import greedy_ids, server
from oracles.tiny_models import greedy, not_ascii, save, tiny
from transformers import AutoModelForCausalLM

from kiloq.convert.rope import LLAMA3
from kiloq.convert.show import describe
from kiloq.convert.source import ModelSource, open_model
from kiloq.convert.write import write_folder
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import FormatError
from kiloq.core.gguf import GGUFFile
from kiloq.core.gguf_write import GGUFTensor, write_gguf
from kiloq.model.rope_scaling import RopeScaling, yarn_magnitude

THETA = 500.0
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
RULES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, **BANDS},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, louder": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.5,
    },
}
IDS = [(7 * at * at + 3 * at) % 256 for at in range(100)]  # far beyond the original 32
PROMPT = IDS[:70]


def scaled(kind: str, rule: str, **changes: Any) -> Any:
    return tiny(kind, seed=2, rope_parameters={**RULES[rule], "rope_theta": THETA}, **changes)


def edited(folder: Path, **changes: Any) -> Path:
    """The folder's config.json with other keys; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


@torch.no_grad()
def logits(model: Any) -> np.ndarray:
    """[T, V] of IDS, from transformers or from us."""
    out = model(torch.tensor([IDS]))
    return (out if isinstance(out, torch.Tensor) else out.logits)[0].float().numpy()


def check_same(source: ModelSource, expected: np.ndarray) -> None:
    np.testing.assert_allclose(logits(network(source)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("rule", RULES)
def test_folder_to_folder_to_transformers(rule: str, kind: str, tmp_path: Path) -> None:
    model = scaled(kind, rule, **({"head_dim": 16} if kind == "qwen3" else {}))
    source, expected = open_model(save(model, tmp_path / "in")), logits(model)
    assert source.config.rope_scaling is not None
    assert describe(tmp_path / "in")["extensions"] == [f"{source.config.rope_scaling.kind} rope scaling"]
    check_same(source, expected)
    for layout in ("native", "qwen2"):
        write_folder(source, tmp_path / layout, layout)
        again = open_model(tmp_path / layout)
        assert again.config == source.config.replace(qkv_bias=again.config.qkv_bias)
        check_same(again, expected)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / layout, dtype=torch.float32).eval()
        np.testing.assert_allclose(logits(theirs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spelling", ["type", "rope_type", "both and a second place"])
def test_old_spellings_mean_the_same(spelling: str, rule: str, tmp_path: Path) -> None:
    folder = save(scaled("llama", rule), tmp_path / "in")
    expected = open_model(folder).config
    old = dict(RULES[rule])
    kind = old.pop("rope_type")
    if spelling == "type":
        edited(folder, rope_parameters=None, rope_theta=THETA, rope_scaling={"type": kind, **old})
    elif spelling == "rope_type":
        edited(folder, rope_parameters=None, rope_scaling={"rope_type": kind, **old, "rope_theta": THETA})
    else:
        edited(folder, rope_scaling={"rope_type": kind, "type": kind, **old})
    assert open_model(folder).config == expected


def test_qwen25_for_long_texts(tmp_path: Path) -> None:
    """The setting of Qwen2.5's model card, added to a file that names the trained length."""
    folder = save(tiny("qwen2", max_position_embeddings=32768), tmp_path / "in")
    setting = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    config = open_model(edited(folder, rope_parameters=None, rope_theta=1e6, rope_scaling=setting)).config
    expected = RopeScaling(kind="yarn", factor=4.0, original_length=32768, attention_factor=yarn_magnitude(4.0))
    assert config.rope_scaling == expected
    assert (config.train_length, config.max_length, config.rope_base) == (32768, 131072, 1e6)
    write_folder(open_model(folder), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_scaling"].items() >= setting.items()
    assert (written["max_position_embeddings"], "kiloq" in written) == (32768, False)


def test_a_factor_that_only_the_lengths_give(tmp_path: Path) -> None:
    """Where `factor` is null, transformers takes the ratio of the lengths; the outer original length goes first."""
    rope = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64, "rope_theta": THETA}
    folder = edited(save(tiny("llama"), tmp_path / "in"), rope_parameters=rope)
    scaling = open_model(folder).config.rope_scaling
    assert scaling is not None
    assert (scaling.factor, scaling.original_length) == (2.0, 64)
    edited(folder, original_max_position_embeddings=32)
    scaling = open_model(folder).config.rope_scaling
    assert scaling is not None
    assert (scaling.factor, scaling.original_length) == (4.0, 32)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("llama", "llama3"), ("llama", "linear"), ("qwen2", "linear"), ("llama", "yarn"), ("qwen2", "yarn"),
     ("qwen3", "yarn, louder")],
)  # fmt: skip
def test_llama_cpp_computes_the_same(kind: str, rule: str, tmp_path: Path) -> None:
    """Greedy ids and their log-probabilities, from a prompt of 70 tokens on, with an original length of 32."""
    model = scaled(kind, rule, **({"head_dim": 16} if kind == "qwen3" else {}))
    source = open_model(save(model, tmp_path / "in", tokenizer=True))
    path = write_gguf_file(source, tmp_path / "out.gguf", "f32").path
    expected, margin = greedy(model, PROMPT, 40, not_ascii())
    assert margin > 1e-3, "choose another seed"
    assert greedy_ids(path, PROMPT, 40, not_ascii()) == expected
    with torch.no_grad():
        raw = model(torch.tensor([PROMPT + expected])).logits[0, -1].double()
    log_probabilities = raw.log_softmax(-1).numpy()
    request = {"prompt": PROMPT + expected, "n_predict": 1, "temperature": 0.0, "logprobs": 5, "n_probs": 5}
    request["logit_bias"] = [[token, False] for token in not_ascii()]  # pieces of characters are not reported
    answer = server(path).handle_completions(request)["choices"][0]["logprobs"]["content"]
    rows = [row for token in answer for row in token["top_logprobs"]]
    for row in rows:
        assert row["logprob"] == pytest.approx(log_probabilities[row["id"]], abs=1e-3)
    again = open_model(path)
    check_same(again, logits(model))
    if rule == "llama3":
        assert again.config.rope_scaling is not None
        assert again.config.rope_scaling.kind == "factors"
    else:
        assert again.config == source.config.replace(init_std=again.config.init_std)


def test_a_table_travels_from_gguf_to_gguf_unchanged(tmp_path: Path) -> None:
    source = open_model(save(scaled("llama", "llama3"), tmp_path / "in"))
    write_gguf_file(source, tmp_path / "a.gguf", "f32")
    write_gguf_file(open_model(tmp_path / "a.gguf"), tmp_path / "b.gguf", "f32")
    one, two = (GGUFFile(tmp_path / name).array("rope_freqs.weight") for name in ("a.gguf", "b.gguf"))
    assert one.tobytes() == two.tobytes()
    assert one.shape == (8,)
    assert one[0] == 1.0 and one[-1] == 8.0
    for layout in ("qwen2", "native"):
        with pytest.raises(FormatError, match="no place for a table"):
            write_folder(open_model(tmp_path / "b.gguf"), tmp_path / layout, layout)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_31_comes_back_from_gguf_as_its_rule(factor: float, tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": factor, **BANDS, "original_max_position_embeddings": 8192}
    model = tiny("llama", head_dim=64, rope_parameters={**rope, "rope_theta": 5e5}, max_position_embeddings=131072)
    write_gguf_file(open_model(save(model, tmp_path / "in")), tmp_path / "a.gguf", "f32")
    write_folder(open_model(tmp_path / "a.gguf"), tmp_path / "out", "native")
    back = open_model(tmp_path / "out")
    assert back.config.rope_scaling == RopeScaling(kind="llama3", factor=factor, **LLAMA3)
    assert back.config.max_length == 131072
    check_same(back, logits(model))


def with_keys(source: Path, target: Path, table: np.ndarray | None = None, **values: Any) -> Path:
    """The GGUF again with `<arch>.rope.*` keys and a table of rope factors."""
    file = GGUFFile(source)
    arch = file.metadata["general.architecture"]
    named = {f"{arch}.rope.{key}": value for key, value in values.items()}
    tensors = [GGUFTensor(n, file.info(n)[0], file.info(n)[1], lambda n=n: file.raw(n)) for n in file.names()]
    if table is not None:
        tensors.append(GGUFTensor("rope_freqs.weight", "F32", table.shape, lambda: table))
    write_gguf(target, dict(file.metadata) | named, tensors)
    return target


def test_gguf_keys_as_llama_cpp_reads_them(tmp_path: Path) -> None:
    """A factor without a type is linear, so is the old key; "none" and a factor of 0 or 1 change nothing."""
    plain = tmp_path / "plain.gguf"
    write_gguf_file(open_model(save(tiny("qwen2"), tmp_path / "in")), plain, "f32")

    def scaling(**values: Any) -> RopeScaling | None:
        dotted = {f"scaling.{key}" if key != "scale_linear" else key: value for key, value in values.items()}
        return open_model(with_keys(plain, tmp_path / "a.gguf", **dotted)).config.rope_scaling

    linear = RopeScaling(kind="linear", factor=2.7)
    assert scaling(factor=2.7) == scaling(scale_linear=2.7) == scaling(type="linear", factor=2.7) == linear
    assert scaling(type="none", factor=4.0) is None
    assert scaling(type="yarn", factor=1.0) is None
    assert scaling(type="linear", factor=0.0) is None
    paper = RopeScaling(kind="yarn", factor=4.0, original_length=128, attention_factor=yarn_magnitude(4.0))
    assert scaling(type="yarn", factor=4.0) == paper  # the original length is the context's
    assert scaling(type="yarn", factor=4.0, yarn_attn_factor=yarn_magnitude(4.0)) == paper
    with pytest.raises(FormatError, match="arch qwen2"):
        open_model(with_keys(plain, tmp_path / "b.gguf", np.full(8, 2, np.float32)))


def test_a_table_beside_keys_is_refused(tmp_path: Path) -> None:
    write_gguf_file(open_model(save(tiny("llama"), tmp_path / "in")), tmp_path / "a.gguf", "f32")
    table = np.full(8, 2, np.float32)
    with pytest.raises(FormatError, match="beside"):
        open_model(with_keys(tmp_path / "a.gguf", tmp_path / "b.gguf", table, **{"scaling.factor": 4.0}))
    path = with_keys(tmp_path / "a.gguf", tmp_path / "c.gguf", table)
    write_folder(open_model(path), tmp_path / "out", "native")  # all alike is linear
    assert open_model(tmp_path / "out").config.rope_scaling == RopeScaling(kind="linear", factor=2.0)


def test_what_a_layout_cannot_say_is_refused(tmp_path: Path) -> None:
    source = open_model(save(scaled("qwen2", "llama3"), tmp_path / "in"))
    with pytest.raises(FormatError, match="arch llama only"):
        write_gguf_file(source, tmp_path / "out.gguf", "f32")
    with pytest.raises(FormatError, match="Qwen-1 layout has no llama3"):
        write_folder(source, tmp_path / "out", "qwen1")
    for unusual in ({"beta_fast": 16.0}, {"beta_slow": 2.0}, {"truncate": False}):
        yarn = RopeScaling(kind="yarn", factor=4.0, original_length=32, **unusual)  # type: ignore[arg-type]
        source.config = source.config.replace(rope_scaling=yarn)
        with pytest.raises(FormatError, match="truncated ramp only"):
            write_gguf_file(source, tmp_path / "out.gguf", "f32")
    source.config = source.config.replace(rotary_dim=8)
    with pytest.raises(FormatError, match="part of each head"):
        write_folder(source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.gguf").exists()


LLAMA3_KEYS = {"rope_type": "llama3", "factor": 8.0, **BANDS}
YARN_KEYS = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
HOSTILE: dict[str, dict[str, Any]] = {
    "negative": {"rope_type": "linear", "factor": -2.0},
    "zero": {"rope_type": "linear", "factor": 0},
    "NaN": {"rope_type": "linear", "factor": float("nan")},
    "infinite": {"rope_type": "yarn", "factor": float("inf")},
    "huge": {"rope_type": "linear", "factor": 1e300},
    "huge whole number": {"rope_type": "linear", "factor": 10**300},
    "text": {"rope_type": "linear", "factor": "2"},
    "true": {"rope_type": "linear", "factor": True},
    "absent": {"rope_type": "linear"},
    "type is a list": {"rope_type": ["linear"]},
    "type is a number": {"rope_type": 3},
    "control characters": {"rope_type": "\x1b[2J" * 1000},
    "bands that touch": {**LLAMA3_KEYS, "low_freq_factor": 4.0},
    "negative band": {**LLAMA3_KEYS, "low_freq_factor": -1.0},
    "band is absent": {key: value for key, value in LLAMA3_KEYS.items() if key != "high_freq_factor"},
    "no length": {**LLAMA3_KEYS, "original_max_position_embeddings": 0},
    "negative length": {**YARN_KEYS, "original_max_position_embeddings": -32},
    "huge length": {**YARN_KEYS, "original_max_position_embeddings": 10**300},
    "fractional length": {**YARN_KEYS, "original_max_position_embeddings": 32.5},
    "no factor and no length": {"rope_type": "yarn", "original_max_position_embeddings": 0},
    "betas that cross": {**YARN_KEYS, "beta_fast": 1, "beta_slow": 32},
    "negative beta": {**YARN_KEYS, "beta_slow": -1},
    "no magnitude": {**YARN_KEYS, "attention_factor": 0.0},
    "negative magnitude": {**YARN_KEYS, "attention_factor": -1.0},
    "huge magnitude": {**YARN_KEYS, "mscale": 1e308, "mscale_all_dim": 1.0},
    "magnitude over nothing": {**YARN_KEYS, "mscale": 1.0, "mscale_all_dim": -10 / float(np.log(4.0))},
    "truncate is text": {**YARN_KEYS, "truncate": "yes"},
    "one for each kind of layer": {"full_attention": LLAMA3_KEYS},
}


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_values_are_refused_in_one_sentence(fault: str, key: str, hostile_folder: Path) -> None:
    edited(hostile_folder, **{"rope_scaling": None, "rope_parameters": None, key: HOSTILE[fault]})
    with pytest.raises(FormatError) as caught:
        open_model(hostile_folder)
    text = str(caught.value)
    assert text.startswith(str(hostile_folder / "config.json"))
    assert text.isprintable()
    assert len(text) < 600


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny("llama"), tmp_path_factory.mktemp("hostile") / "in")


@pytest.mark.parametrize("positions", [0, -5, 10**300])
def test_hostile_lengths_beside_scaling(positions: int, tmp_path: Path) -> None:
    folder = edited(save(tiny("llama"), tmp_path / "in"), max_position_embeddings=positions)
    for rope in ({"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "original_max_position_embeddings": 1}):
        edited(folder, rope_parameters=rope)
        with pytest.raises(FormatError) as caught:
            open_model(folder)
        assert str(caught.value).startswith(str(folder / "config.json"))


def test_two_places_that_differ_are_refused(tmp_path: Path) -> None:
    folder = save(scaled("llama", "linear"), tmp_path / "in")
    for rope in ({"type": "linear", "factor": 2.0}, {"type": "yarn", "factor": 3.0}):
        with pytest.raises(FormatError, match="remove one of them"):
            open_model(edited(folder, rope_scaling=rope))
