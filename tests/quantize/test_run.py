"""Whole models: one layer at a time gives what the whole network gives, a killed run goes on, the folder opens anywhere.

Perplexities are compared to 1e-4 relative: the same float32 sums, through one layer at a time and through all.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert.test_source import network
from oracles.llama_cpp import greedy_ids
from oracles.naive_gptq import decode
from oracles.tiny_models import greedy, not_ascii, save, tiny
from safetensors.numpy import load_file
from torch.nn import functional as F

from kiloq.convert.integers import from_blocks, to_blocks
from kiloq.convert.source import ModelSource, open_model
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import FormatError, UsageError
from kiloq.core.manifest import verify_manifest
from kiloq.quantize.layers import MATRICES
from kiloq.quantize.packing import check_shape
from kiloq.quantize.perplexity import perplexity
from kiloq.quantize.run import Outcome, Samples, layer_weights, quantise_model
from kiloq.quantize.settings import Settings
from kiloq.quantize.work import Work
from kiloq.quantize.write import write_quantised

KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "qwen3": {"head_dim": 32},
}


def samples(seed: int = 0) -> Samples:
    random = np.random.default_rng(seed)
    rows = [random.integers(0, 260, length).tolist() for length in (40, 17, 64, 33, 5, 2)]
    return Samples(rows[:4], rows[4:] + rows[:1])


def model(folder: Path, kind: str = "qwen2", **changes: Any) -> ModelSource:
    return open_model(save(tiny(kind, **(KINDS[kind] | changes)), folder, tokenizer=True))


def finish(source: ModelSource, out: Path, settings: Settings, work: Work, outcome: Outcome) -> ModelSource:
    figures = {
        "settings": {"bits": settings.bits},
        "run": {"seconds": 1.0},
        "error_of": "<outputs>",
        "errors": outcome.errors,
        "perplexity": {"text": "a<b.txt", "tokens": 50, "before": outcome.before, "after": outcome.after},
    }
    write_quantised(source, out, settings, outcome, work, dtype=None, inputs={}, figures=figures)
    return open_model(out)


def whole_perplexity(source: ModelSource, rows: list[list[int]]) -> float:
    total, count, net = 0.0, 0, network(source)
    with torch.no_grad():
        for ids in rows:
            total += float(F.cross_entropy(net(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]), reduction="sum"))
            count += len(ids) - 1
    return math.exp(total / count)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"method": "rtn", "bits": 8}, {"desc_act": True, "symmetric": False}])
def test_the_folder_gives_the_measured_perplexity(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    source, settings = model(tmp_path / "in", kind), Settings(group=32, **changes)
    work = Work(tmp_path / "out", {})
    outcome = quantise_model(source, settings, samples(), work)
    again = finish(source, tmp_path / "out", settings, work, outcome)
    assert outcome.before == pytest.approx(whole_perplexity(source, samples().evaluation), rel=1e-4)
    assert outcome.after == pytest.approx(whole_perplexity(again, samples().evaluation), rel=1e-4)
    assert again.quantised
    assert again.config == source.config.replace(init_std=again.config.init_std)
    for name in source.names():
        found = again.integers(name)
        matrix = name.startswith("layers.") and len(source.shape(name)) == 2
        assert (found is not None) == matrix
        if not matrix:
            np.testing.assert_array_equal(again.tensor(name), source.tensor(name))
    verify_manifest(tmp_path / "out")
    assert [set(errors) for errors in outcome.errors] == [set(MATRICES)] * 2
    assert all(0 < error < 0.2 for errors in outcome.errors for error in errors.values())


def test_an_independent_reader_decodes_the_files(tmp_path: Path) -> None:
    source, settings = model(tmp_path / "in"), Settings(group=32, desc_act=True, symmetric=False)
    work = Work(tmp_path / "out", {})
    again = finish(source, tmp_path / "out", settings, work, quantise_model(source, settings, samples(), work))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name in ("layers.1.mlp.down_proj", "layers.0.self_attn.k_proj"):
        parts = {part: tensors[f"model.{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
        assert parts["scales"].dtype == np.float16
        np.testing.assert_allclose(again.tensor(f"{name}.weight"), decode(parts, 4), rtol=1e-6)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    described = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    for values in (config["quantization_config"], described):
        assert {key: values[key] for key in ("quant_method", "bits", "group_size", "sym", "desc_act")} == {
            "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True
        }  # fmt: skip


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_result(tmp_path: Path) -> None:
    source, settings, given = model(tmp_path / "in"), Settings(group=32), samples()

    def stop(layer: int, layers: int, errors: dict[str, float], seconds: float) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        quantise_model(source, settings, given, Work(tmp_path / "out", {"job": 1}), stop)
    seen: list[int] = []
    work = Work(tmp_path / "out", {"job": 1})
    resumed = quantise_model(source, settings, given, work, lambda layer, *rest: seen.append(layer))
    assert seen == [1]
    assert resumed.resumed == 1
    other = Work(tmp_path / "other", {"job": 1})
    straight = quantise_model(source, settings, given, other)
    assert (resumed.before, resumed.after, resumed.errors) == (straight.before, straight.after, straight.errors)
    for layer in range(2):
        for name in work.tensors(layer).names():
            np.testing.assert_array_equal(work.tensors(layer).array(name), other.tensors(layer).array(name))
    assert Work(tmp_path / "out", {"job": 2}).layers_done() == 0  # another job begins anew
    (other.folder / "states.safetensors").write_bytes(b"damaged")
    assert Work(tmp_path / "other", {"job": 1}).layers_done() == 0
    other.remove()
    assert not other.folder.exists()


def test_gptq_loses_less_than_rounding(tmp_path: Path) -> None:
    """On the inputs that it was calibrated with; 0.9 leaves room: here it is about half."""
    source = model(tmp_path / "in")
    errors = {}
    for method in ("gptq", "rtn"):
        outcome = quantise_model(source, Settings(group=32, method=method), samples(), Work(tmp_path / method, {}))
        errors[method] = sum(sum(layer.values()) for layer in outcome.errors)
    assert errors["gptq"] < 0.9 * errors["rtn"]


def test_rounding_needs_no_text(tmp_path: Path) -> None:
    outcome = quantise_model(
        model(tmp_path / "in"), Settings(method="rtn", group=-1), Samples(), Work(tmp_path / "o", {})
    )
    assert (outcome.before, outcome.after) == (None, None)
    assert all(error < 0.05 for errors in outcome.errors for error in errors.values())


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    network_ = tiny("qwen2")
    with torch.no_grad():
        network_.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    source = open_model(save(network_, tmp_path / "in"))
    layer_weights(source, 0)
    with pytest.raises(FormatError, match=r"up_proj\.weight holds NaN"):
        layer_weights(source, 1)


def test_matrices_that_cannot_be_packed_are_refused() -> None:
    check_shape("a", (64, 96))
    for shape in ((64, 80), (40, 64)):
        with pytest.raises(UsageError, match="multiples of 32"):
            check_shape("a", shape)


@pytest.mark.parametrize(("bits", "dtype", "group"), [(4, "q4_0", 32), (8, "q8_0", 32), (4, "q4_0", 64)])
def test_gguf_gets_the_same_integers(bits: int, dtype: str, group: int, tmp_path: Path) -> None:
    """And llama.cpp says the same: 8 greedy ids. It rounds activations to 8 bits, which this model of random weights
    turns into steps of the logits that overtake the margin some tokens later.

    96 columns in groups of 64 leave a group of 32.
    """
    source, settings = model(tmp_path / "in", "llama"), Settings(group=group, bits=bits)
    work = Work(tmp_path / "out", {})
    folder = finish(source, tmp_path / "out", settings, work, quantise_model(source, settings, samples(), work))
    write_gguf_file(folder, tmp_path / "out.gguf", dtype)
    file = open_model(tmp_path / "out.gguf")
    for name in file.names():
        before, after = folder.integers(name), file.integers(name)
        if before is not None:
            assert after is not None
            np.testing.assert_array_equal(after.codes, before.codes)
            np.testing.assert_array_equal(after.decode(), before.decode())
    prompt = [5, 9, 200, 17]
    expected, margin = greedy_of(file, prompt)
    assert margin > 0.05
    assert greedy_ids(tmp_path / "out.gguf", prompt, 8, not_ascii()) == expected


def greedy_of(source: ModelSource, prompt: list[int]) -> tuple[list[int], float]:
    net = network(source)

    class Output:
        def __init__(self, ids: torch.Tensor) -> None:
            self.logits = net(ids)

    return greedy(Output, prompt, 8, not_ascii())


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_blocks_survive_apart_and_together(kind: str) -> None:
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (3, 4 * (18 if kind == "Q4_0" else 34)), np.uint8)
    raw.reshape(12, -1)[:, 1] &= 0x3F  # finite scales
    found = from_blocks(raw, kind)
    assert found is not None
    again = to_blocks(found, kind)
    np.testing.assert_array_equal(again, raw)
    assert to_blocks(found, "Q4_1") is None
    assert to_blocks(found, "Q8_0" if kind == "Q4_0" else "Q4_0") is None


def test_perplexity_of_equal_logits_is_the_vocabulary() -> None:
    ids = [[1, 2, 3] * 200]
    assert perplexity([torch.zeros(600, 8)], ids, torch.ones(50, 8)) == pytest.approx(50)


def test_the_report_is_one_page_without_scripts(tmp_path: Path) -> None:
    source, settings = model(tmp_path / "in"), Settings(group=32)
    work = Work(tmp_path / "out", {})
    finish(source, tmp_path / "out", settings, work, quantise_model(source, settings, samples(), work))
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(page) < 20_000
    assert "<svg" in page
    assert "a&lt;b.txt" in page
    assert page.count("<polyline") == 7
    assert not re.search(r"<script|https?://|src=", page)
