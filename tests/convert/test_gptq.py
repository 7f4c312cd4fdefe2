"""GPTQ folders: packing bit for bit with AutoGPTQ's, whole folders with its logits, and what is refused.

Logits: the same float32 weights through two networks, 2e-4 at logits of size 5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert.test_source import network
from oracles import gptq_goldens
from safetensors.torch import load_file, save_file

from kiloq.convert.gptq import pack_codes, pack_zeros, unpack_codes, unpack_zeros
from kiloq.convert.source import open_model
from kiloq.convert.write import write_folder
from kiloq.core.errors import FormatError

RUNS = ["b4_g128_desc0_seq1", "b8_g128_desc0_seq1", "b4_g128_desc1_seq1", "b4_g128_desc0_seq0"]


def test_packing_equals_the_reference_bit_for_bit() -> None:
    cases, tensors = gptq_goldens.layer()
    packed = [name for name in cases if f"{name}.codes" in tensors and f"{name}.qweight" in tensors]
    assert len(packed) == 20
    for name in packed:
        bits = cases[name]["bits"]
        part = {key: tensors[f"{name}.{key}"].numpy() for key in ("codes", "qweight", "qzeros", "zero_raw")}
        zero = part["zero_raw"].T.astype(np.uint8)
        np.testing.assert_array_equal(pack_codes(part["codes"], bits), part["qweight"])
        np.testing.assert_array_equal(unpack_codes(part["qweight"], bits), part["codes"])
        np.testing.assert_array_equal(pack_zeros(np.ascontiguousarray(zero), bits), part["qzeros"])
        np.testing.assert_array_equal(unpack_zeros(part["qzeros"], bits), zero)


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_and_zero_point_survives(bits: int) -> None:
    """Also a zero point of 0, which wraps around when it is stored less one."""
    top = 1 << bits
    codes = np.random.default_rng(0).integers(0, top, (64, 96)).astype(np.uint8)
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes, bits), bits), codes)
    zero = (np.arange(3 * 256) % top).astype(np.uint8).reshape(3, 256)
    np.testing.assert_array_equal(unpack_zeros(pack_zeros(zero, bits), bits), zero)
    np.testing.assert_array_equal(unpack_zeros(pack_zeros(zero, bits), bits, 0), (zero.astype(int) - 1) % top)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("modern", [True, False])
def test_a_qwen1_folder_gives_the_references_logits(run: str, modern: bool, tmp_path: Path) -> None:
    golden, tensors = gptq_goldens.tiny()
    source = open_model(gptq_goldens.tiny_folder(run, tmp_path / "in", modern=modern))
    bits = golden["runs"][run]["bits"]
    assert source.quantised
    assert source.kind == "qwen1"
    assert source.stored_types() == {f"GPTQ{bits}": 10, "F32": 9}
    with torch.no_grad():
        logits = network(source)(torch.tensor([golden["test_ids"]]))
    torch.testing.assert_close(logits, tensors[f"{run}.logits"], atol=2e-4, rtol=0)
    for name in source.names():
        found = source.integers(name)
        assert (found is None) == (not name.startswith("layers.") or len(source.shape(name)) == 1)
        if found is not None:
            assert found.bits == bits
            assert (found.g_idx is not None) == ("desc1" in run and "down_proj" in name)
            part = source.integers(name, (5, 37))
            assert part is not None
            np.testing.assert_array_equal(part.decode(), source.tensor(name)[5:37])


def test_a_decoded_copy_has_equal_values(tmp_path: Path) -> None:
    source = open_model(gptq_goldens.tiny_folder(RUNS[0], tmp_path / "in", modern=True))
    write_folder(source, tmp_path / "out", "qwen2")
    again = open_model(tmp_path / "out")
    assert not again.quantised
    for name in again.names():
        np.testing.assert_array_equal(again.tensor(name), source.tensor(name))


def test_autogptqs_own_file_name_is_found(tmp_path: Path) -> None:
    folder = gptq_goldens.tiny_folder(RUNS[0], tmp_path / "in", modern=False)
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors")
    assert open_model(folder).quantised
    (folder / "gptq_model-8bit--1g.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match="keep one of them"):
        open_model(folder)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"quant_method": "awq"}, "GPTQ folders and GGUF"),
    "three bits": ({"bits": 3}, "3' bits"),
    "no bits": ({"bits": None}, "'bits'"),
    "group of zero": ({"group_size": 0}, "group_size"),
    "marlin": ({"is_marlin_format": True}, "AutoGPTQ's layout"),
    "another packing": ({"checkpoint_format": "bitblas"}, "AutoGPTQ's layout"),
    "settings by layer": ({"dynamic": {"+:x": {"bits": 8}}}, "dynamic"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_other_quantisations_are_refused(case: str, tmp_path: Path) -> None:
    folder = gptq_goldens.tiny_folder(RUNS[0], tmp_path / "in", modern=True)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= CONFIGS[case][0]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=CONFIGS[case][1]) as caught:
        open_model(folder)
    assert str(caught.value).startswith(str(folder / "config.json"))


MODULE = "transformer.h.0.mlp.w1"
FAULTS: dict[str, tuple[str, Any, str]] = {
    "another shape": ("qzeros", lambda x: x[:, :-1], "need I32"),
    "another type": ("scales", lambda x: x.to(torch.int32), "need F16"),
    "a part is missing": ("scales", None, "lacks tensor"),
    "words of another size": ("qweight", lambda x: x.to(torch.int64), "need I32"),
    "a flat matrix": ("qweight", lambda x: x.reshape(-1), "impossible shape"),
    "more columns than the model has": ("qweight", lambda x: torch.cat([x, x]), "need I32"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parts_that_do_not_fit_are_refused(fault: str, tmp_path: Path) -> None:
    folder = gptq_goldens.tiny_folder(RUNS[0], tmp_path / "in", modern=True)
    part, change, message = FAULTS[fault]
    tensors = load_file(folder / "model.safetensors")
    value = tensors.pop(f"{MODULE}.{part}")
    if change is not None:
        tensors[f"{MODULE}.{part}"] = change(value).contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FormatError, match=message) as caught:
        open_model(folder)
    assert str(caught.value).startswith(str(folder / "model.safetensors"))


@pytest.mark.parametrize("bad", [-1, 2, 2**31 - 1])
def test_columns_of_groups_that_do_not_exist_are_refused(bad: int, tmp_path: Path) -> None:
    folder = gptq_goldens.tiny_folder(RUNS[0], tmp_path / "in", modern=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.mlp.c_proj.g_idx"][7] = bad
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FormatError, match="the file is damaged"):
        open_model(folder).tensor("layers.0.mlp.down_proj.weight")


def test_a_folder_that_only_says_so_is_refused(tmp_path: Path) -> None:
    folder = gptq_goldens.tiny_folder(RUNS[0], tmp_path / "in", modern=True)
    save_file({"x": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(FormatError, match="the weights are not"):
        open_model(folder)
