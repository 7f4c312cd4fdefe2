"""Weights into the native engine: which form each matrix gets, that stored integers are not rounded again, and what loading
costs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from generate.test_load import copied, wide_folder
from oracles import gptq_goldens
from oracles.native_models import MemorySource, Twin, held_matrix, native_backend, random_source, some_ids
from safetensors.torch import load_file, save_file
from support import shared, smollm2_gguf

import kiloq
from kiloq import native
from kiloq.convert.integers import Integers
from kiloq.convert.source import ModelSource, open_model
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import UsageError
from kiloq.generate import native_load
from kiloq.model.config import ModelConfig

if native.engine() is None:
    pytest.skip(native.MISSING, allow_module_level=True)

CONFIG = ModelConfig(vocab_size=96, hidden_size=64, num_layers=2, num_heads=4, ffn_size=128, train_length=64)
TEXT = (
    "The water of a river does not stop at the border of a country. Whoever builds a dam upstream decides how much of it "
    "reaches the fields below, and in dry years neighbours have quarrelled about every gate. In the nineteenth century "
    "engineers began to measure rivers day by day; their tables are still used, because a single flood says little and "
    "a hundred years of floods say a lot. Question: why are old tables useful? Answer:"
)
GGUF_TYPES = {"Q4_0": ("int4", "none"), "Q4_1": ("int4", "minimum"), "Q8_0": ("int8", "none"), "Q5_0": ("int8", "none"), "Q5_1": ("int8", "none")}  # fmt: skip


def forms(source: ModelSource | MemorySource, weights: str) -> dict[str, set[tuple[str, str, int, bool]]]:
    """(format, offset, group, from the file's integers) of the embedding, the head, and all other matrices."""
    found: dict[str, set[tuple[str, str, int, bool]]] = {}
    for name, slot in native_load.slots(source, weights).items():
        part = name if name in ("embed_tokens.weight", "lm_head.weight") else "layers"
        found.setdefault(part.removesuffix(".weight"), set()).add((slot.format, slot.offset, slot.group, slot.stored))
    return found


def gguf_of(kind: str, path: Path) -> Path:
    """A tiny model's GGUF whose matrices the gguf package has quantised."""
    write_gguf_file(random_source_folder(path.parent), path.with_name("plain.gguf"), "f32")
    reader = gguf.GGUFReader(path.with_name("plain.gguf"))
    writer = gguf.GGUFWriter(path, arch=reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        values, matrix = np.array(tensor.data), len(tensor.shape) == 2
        of_kind = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(values, of_kind) if matrix else values
        writer.add_tensor(tensor.name, data, raw_dtype=of_kind if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_source_folder(folder: Path) -> ModelSource:
    source = random_source(CONFIG.replace(qkv_bias=False))
    state = {
        f"model.{name}" if not name.startswith("lm_head") else name: source.tensor(name) for name in source.names()
    }
    (folder / "hf").mkdir()
    save_file({name: torch.from_numpy(value) for name, value in state.items()}, folder / "hf" / "model.safetensors")
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=96, hidden_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, intermediate_size=128, max_position_embeddings=64,
        rms_norm_eps=1e-6, rope_theta=10_000.0, tie_word_embeddings=False, hidden_act="silu",
    )  # fmt: skip
    (folder / "hf" / "config.json").write_text(json.dumps(config))
    return open_model(folder / "hf")


@pytest.mark.parametrize(
    ("stored", "weights", "want"),
    [
        ("float32", "auto", "fp32"), ("float16", "auto", "fp32"), ("bfloat16", "auto", "bf16"),
        ("bfloat16", "fp32", "fp32"), ("float32", "bf16", "bf16"), ("float16", "bf16", "bf16"),
        ("bfloat16", "int8", "int8"), ("float32", "int4", "int4"),
    ],
)  # fmt: skip
def test_floats_become_what_is_asked_for(stored: str, weights: str, want: str) -> None:
    """Four bits keep a minimum, and leave the embedding and the head at eight."""
    kind = np.dtype(ml_dtypes.bfloat16) if stored == "bfloat16" else np.dtype(stored)
    plain = random_source(CONFIG)
    source = MemorySource(CONFIG, {name: plain.tensor(name).astype(kind) for name in plain.names()})
    form = (want, "minimum" if want == "int4" else "none", 32, False)
    ends = ("int8", "none", 32, False) if want == "int4" else form
    assert forms(source, weights) == {"embed_tokens": {ends}, "lm_head": {ends}, "layers": {form}}
    backend = native_backend(source, weights)
    ids = some_ids(CONFIG, 20)
    exact = native_backend(plain, "fp32").logits(ids)
    error = np.abs(backend.logits(ids) - exact).mean() / exact.std()
    bounds = {"fp32": 0.005, "bf16": 0.02, "int8": 0.06, "int4": 0.4}  # half of it was seen
    assert error < max(bounds[want], 0.02 if stored == "bfloat16" else 0)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_our_rounding_is_to_nearest(weights: str) -> None:
    """No number is further from its own than half a step of its group of 32, plus what half-precision scales cost."""
    random = np.random.default_rng(0)
    values = random.standard_normal((70, 130)).astype(np.float32)
    values[3], values[4, :40], values[5] = 0.0, 2.5, np.abs(values[5]) + 9  # zeros, a constant, all of one sign
    source = MemorySource(CONFIG, {"x": values})
    held = held_matrix(source, "x", weights)
    for begin in range(0, 130, 32):
        group, ours = values[:, begin : begin + 32], held[:, begin : begin + 32]
        size = np.abs(group).max(-1)
        span = group.max(-1) - group.min(-1)
        half_step = size / 127 / 2 if weights == "int8" else span / 15 / 2
        assert (np.abs(ours - group).max(-1) <= half_step + size * 2.0**-10 + 1e-7).all()
    assert not held[3].any()


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_gguf_integers_are_held_as_they_are(kind: str, tmp_path: Path) -> None:
    """Bit for bit what the gguf package decodes, where the engine has such integers; other types become int8."""
    path = gguf_of(kind, tmp_path / "x.gguf")
    source = open_model(path)
    stored = kind in ("Q4_0", "Q4_1", "Q8_0")
    form = (*GGUF_TYPES[kind], 32, stored)
    assert forms(source, "auto") == {"embed_tokens": {form}, "lm_head": {form}, "layers": {form}}
    reader = gguf.GGUFReader(path)
    pairs = {"embed_tokens": "token_embd", "lm_head": "output", "layers.1.self_attn.v_proj": "blk.1.attn_v",
             "layers.0.self_attn.o_proj": "blk.0.attn_output", "layers.1.mlp.down_proj": "blk.1.ffn_down"}  # fmt: skip
    for ours, theirs in pairs.items():
        (tensor,) = [tensor for tensor in reader.tensors if tensor.name == f"{theirs}.weight"]
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        held = held_matrix(source, f"{ours}.weight", "auto")
        if stored:
            np.testing.assert_array_equal(held, want)
        else:
            assert np.abs(held - want).max() <= np.abs(want).max() / 127
    if stored:  # q and k too, whose rows llama.cpp has in another order
        for name in native_load.slots(source, "auto"):
            np.testing.assert_array_equal(held_matrix(source, name, "auto"), source.tensor(name))
    ids = some_ids(CONFIG, 40)
    got, twin = native_backend(source, "auto").logits(ids), Twin(source, "auto").logits(ids)
    assert np.abs(got - twin).mean() < 0.02 * twin.std()  # activations round to a neighbour now and then
    np.testing.assert_allclose(native_backend(source, "fp32").logits(ids), Twin(source, "fp32").logits(ids), atol=1e-4)


def test_integers_of_another_width_are_rounded_again_only_when_asked(tmp_path: Path) -> None:
    source = open_model(gguf_of("Q4_1", tmp_path / "x.gguf"))
    assert forms(source, "int4")["layers"] == {("int4", "minimum", 32, True)}
    assert forms(source, "int4")["lm_head"] == {("int8", "minimum", 32, True)}
    assert forms(source, "int8")["layers"] == {("int8", "minimum", 32, True)}
    assert forms(source, "bf16")["layers"] == {("bf16", "none", 32, False)}
    other = tmp_path / "other"
    other.mkdir()
    source = open_model(gguf_of("Q8_0", other / "x.gguf"))
    assert forms(source, "int4")["layers"] == {("int4", "minimum", 32, False)}


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_four_bits_in_eight_are_the_same_numbers(kind: str, tmp_path: Path) -> None:
    source = open_model(gguf_of(kind, tmp_path / "x.gguf"))
    for name in native_load.slots(source, "int8"):
        np.testing.assert_array_equal(held_matrix(source, name, "int8"), source.tensor(name))


RUNS = ["b4_g128_desc0_seq1", "b8_g128_desc0_seq1", "b4_g128_desc1_seq1", "b4_g128_desc0_seq0"]


@pytest.mark.parametrize("run", RUNS)
def test_gptq_folders(run: str, tmp_path: Path) -> None:
    """Codes and zero points as they are, in the order of act-order's groups. Scales are half precision, as in every
    published folder: the float32 ones of this reference move by 2^-11 of themselves, and its logits by less than 8-bit
    activations do. Mean errors here, as shares of the logits' standard deviation: 1 % to the twin, 2 % to the reference."""
    golden, tensors = gptq_goldens.tiny()
    source = open_model(gptq_goldens.tiny_folder(run, tmp_path / "in", modern=True))
    plan = native_load.slots(source, "auto")
    for name, slot in plan.items():
        found = source.integers(name)
        if found is None:
            assert (slot.format, slot.stored) == ("int8" if name.startswith("layers") else slot.format, False)
            continue
        assert (slot.format, slot.offset, slot.stored) == (
            f"int{found.bits}",
            "none" if found.symmetric else "zero",
            True,
        )
        assert (slot.order is not None) == (found.g_idx is not None)
        half = found.scale.astype(np.float16)
        want = Integers(found.codes, found.bits, found.group, half, found.zero, None, found.g_idx).decode()
        for weights in ("auto", "int8"):
            np.testing.assert_array_equal(held_matrix(source, name, weights), want)
        np.testing.assert_allclose(want, source.tensor(name), rtol=2.0**-11 * 1.01)
    want = tensors[f"{run}.logits"][0].numpy()
    got = native_backend(source, "auto").logits(golden["test_ids"])
    twin = Twin(source, "auto").logits(golden["test_ids"])
    assert np.abs(got - twin).mean() < 0.03 * want.std()
    assert np.abs(got - want).mean() < 0.05 * want.std()
    exact = native_backend(source, "fp32").logits(golden["test_ids"])
    np.testing.assert_allclose(exact, want, atol=2e-4)


def test_neighbours_in_different_column_orders_are_one_sentence(tmp_path: Path) -> None:
    """q, k and v share their input, so GPTQ gives them one order; a file that does not is refused with a way out."""
    source = open_model(gptq_goldens.tiny_folder(RUNS[2], tmp_path / "in", modern=True))
    plan = native_load.slots(source, "auto")
    slot = plan["layers.0.mlp.up_proj.weight"]
    order = np.arange(slot.columns, dtype=np.int32)[::-1].copy()
    plan["layers.0.mlp.up_proj.weight"] = native_load.Slot(**(vars(slot) | {"order": order}))
    with pytest.raises(UsageError, match="--weights bf16"):
        native_load.decoder(
            native.engine(), source, plan, kv="fp32", threads=1, cache_bytes=1 << 30, tell=lambda s: None
        )


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_noticed(weights: str, bad: float) -> None:
    plain = random_source(CONFIG)
    state = {name: plain.tensor(name).copy() for name in plain.names()}
    names = ["embed_tokens.weight", "layers.1.input_layernorm.weight", "layers.0.mlp.down_proj.weight"]
    for name in names:
        state[name][..., 5] = bad
    source = MemorySource(CONFIG, state)
    native_backend(source, weights)
    assert sorted(source.broken) == sorted(names)


def test_a_folder_with_broken_weights_warns(tmp_path: Path) -> None:
    folder = copied("m18b", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.w1.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    for weights in ("fp32", "int8"):
        model = kiloq.load(folder, weights=weights, engine="native")
        assert any("layers.1.mlp.up_proj.weight" in warning and "NaN" in warning for warning in model.warnings)


@pytest.mark.parametrize(("weights", "main"), [("auto", "bf16"), ("int8", "int8"), ("int4", "int4"), ("fp32", "fp32")])
def test_load_says_what_it_made(weights: str, main: str) -> None:
    lines: list[str] = []
    model = kiloq.load(shared("goldens", "model", "m7b"), weights=weights, engine="native", progress=lines.append)
    assert (model.dtype, model.backend, model.device) == (main, "native", "cpu")
    assert lines[-1] == f"packing the weights as {main}: 100%"
    assert model.engine.backend.kv == ("fp32" if main == "fp32" else "bf16")


@pytest.fixture(scope="module")
def default_source() -> ModelSource:
    return open_model(smollm2_gguf())


def test_the_default_model_runs_from_its_files_integers(default_source: ModelSource) -> None:
    """Q4_1 with a Q8_0 embedding: each matrix holds what the gguf package decodes, on rows picked from all blocks."""
    assert forms(default_source, "auto") == {
        "embed_tokens": {("int8", "none", 32, True)}, "layers": {("int4", "minimum", 32, True)},
    }  # fmt: skip
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2_gguf()).tensors}
    random = np.random.default_rng(0)
    names = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip
    pairs = {"embed_tokens.weight": "token_embd.weight"}
    pairs |= {f"layers.{n}.{ours}.weight": f"blk.{n}.{gg}.weight" for gg, ours in names.items() for n in (0, 13, 29)}
    for ours, theirs in pairs.items():
        slot = native_load.slots(default_source, "auto")[ours]
        matrix = native_load.Packer(native.engine(), default_source, {ours: slot}, 2).matrix(slot)
        for row in {0, slot.rows - 1, *random.integers(0, slot.rows, 20).tolist()}:
            tensor = reader[theirs]
            want = gguf.quants.dequantize(tensor.data[row : row + 1], tensor.tensor_type)[0]
            np.testing.assert_array_equal(np.array(matrix.row(row), np.float32), want)


def test_the_default_models_logits() -> None:
    """Against PyTorch in float32 on the decoded weights, over a text: what is left is the rounding of activations to 8
    bits and of the cache to bf16. Measured over 89 tokens: mean error 3.6 % of the logits' standard deviation (the twin,
    which rounds alike, is as far from float32), equal argmax at 98 % of the places, perplexity 0.9 % lower."""
    path = smollm2_gguf()
    ours = kiloq.load(path, engine="native")
    ids = ours.tokenizer.encode(TEXT)
    twin = kiloq.load(path, engine="torch", weights="fp32")
    got, want = ours.logits(ids), twin.logits(ids)
    error = np.abs(got - want).mean() / want.std()
    same = (got.argmax(-1) == want.argmax(-1)).mean()
    ratio = perplexity(got, ids) / perplexity(want, ids)
    assert error < 0.06
    assert same > 0.93
    assert 0.97 < ratio < 1.03


def perplexity(logits_TV: np.ndarray, ids: list[int]) -> float:
    wide = logits_TV[:-1].astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    losses = np.log(np.exp(wide).sum(-1)) - wide[np.arange(len(wide)), ids[1:]]
    return float(np.exp(losses.mean()))


LOADED = """
import sys, kiloq, kiloq.generate.load, gguf.quants
from kiloq import native
native.engine()
def peak():
    return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) / 1024
before = peak()
model = kiloq.load(sys.argv[1], weights=sys.argv[2], engine="native")
print(peak() - before)
model.generate([1, 2, 3], max_new_tokens=3)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


def native_peak_mib(path: Path, weights: str) -> float:
    """MiB by which a fresh process's resident peak grows while the native engine loads, never importing PyTorch."""
    command = [sys.executable, "-c", LOADED, str(path), weights]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_loading_streams(tmp_path: Path) -> None:
    """The peak is the packed weights, a sixth of them, a piece of a tensor in the making and start-up; pages of the file
    (196 MiB of float32, 54 of GGUF) are given back as it is read. Measured: 9 to 53 MiB above the packed size."""
    write_gguf_file(open_model(wide_folder(tmp_path)), tmp_path / "wide.gguf", "q8_0")
    for name, weights in [("m18b", "fp32"), ("m18b", "int8"), ("wide.gguf", "auto"), ("wide.gguf", "fp32")]:
        source = open_model(tmp_path / name)
        plan = native_load.slots(source, weights)
        packed = native_load.Packer(native.engine(), source, plan, 1).total_bytes / 2**20
        assert native_peak_mib(tmp_path / name, weights) < 1.15 * packed + 50, (name, weights)


def test_other_quantised_types_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix is packed in pieces: each decodes its own rows, not the whole tensor again."""
    monkeypatch.setattr(native_load, "PIECE_ELEMENTS", 64 * 16)
    source = open_model(gguf_of("Q5_0", tmp_path / "x.gguf"))
    decoded = 0
    whole = source._tensors._decode

    def counted(tensor: object, raw: np.ndarray) -> np.ndarray:
        nonlocal decoded
        decoded += len(raw)
        return whole(tensor, raw)

    monkeypatch.setattr(source._tensors, "_decode", counted)
    native_backend(source, "auto")
    assert decoded == sum(slot.rows for slot in native_load.slots(source, "auto").values())
