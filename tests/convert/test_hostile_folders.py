"""Model folders and GGUF files that a stranger has prepared: refused in one sentence, nothing run, nothing written outside.

Each case changes a good folder in one way. The canary file must never appear; `tracemalloc` bounds the memory.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles.tiny_models import save, tiny

from kiloq.convert.source import open_model
from kiloq.convert.write_gguf import write_gguf_file
from kiloq.core.errors import FormatError, KiloqError, MissingError
from kiloq.core.gguf import GGUFFile
from kiloq.core.gguf_write import GGUFTensor, write_gguf
from kiloq.core.safetensors import SafetensorsFile, write_safetensors


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen2 folder in two shards."""
    return save(tiny("qwen2"), tmp_path_factory.mktemp("good") / "model", max_shard_size="300KB")


def weights(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of the folder, whose shards are replaced by one file."""
    arrays = {}
    for shard in sorted(folder.glob("*.safetensors")):
        file = SafetensorsFile(shard)
        arrays |= {name: file.array(name).copy() for name in file.names()}
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    return arrays


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def edit_weights(edit: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        arrays = weights(folder)
        edit(arrays)
        write_safetensors(folder / "model.safetensors", arrays)

    return change


def edit_index(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        edit(index)
        path.write_text(json.dumps(index))

    return change


def shard_named(name: str) -> Callable[[Path], None]:
    return edit_index(lambda index: index["weight_map"].update({"model.norm.weight": name}))


def bin_with(payload: Callable[[Path], bytes]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights(folder)
        (folder / "pytorch_model.bin").write_bytes(payload(folder))

    return change


class Canary:
    """Pickles into a call that creates the canary file."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder.parent / 'canary'}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def torch_saved(make: Callable[[Path], Any]) -> Callable[[Path], bytes]:
    def payload(folder: Path) -> bytes:
        path = folder.parent / "payload"
        torch.save(make(folder), path)
        return path.read_bytes()

    return payload


def bomb(folder: Path) -> bytes:
    """A torch archive whose members are compressed a thousand to one."""
    path = folder.parent / "bomb"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(50 << 20))
    return path.read_bytes()


def replace_file(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def link(name: str, target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def truncate_shard(folder: Path) -> None:
    data = first_shard(folder).read_bytes()
    first_shard(folder).write_bytes(data[:-1])


def huge_header(folder: Path) -> None:
    first_shard(folder).write_bytes(struct.pack("<Q", 1 << 63) + b"{}")


def drop(name: str) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda arrays: arrays.pop(name)


UP = "model.layers.0.mlp.up_proj.weight"
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000

FOLDERS: dict[str, Callable[[Path], None]] = {
    "config 100,000 deep": replace_file("config.json", DEEP),
    "config is a list": replace_file("config.json", b"[]"),
    "config is empty": replace_file("config.json", b""),
    "config of 5 MB": replace_file("config.json", b"{}" + b" " * (5 << 20)),
    "config with a key twice": replace_file("config.json", b'{"model_type": "qwen2", "model_type": "llama"}'),
    "config is a link out": link("config.json", "/etc/passwd"),
    "config is a link to nothing outside": link("config.json", "/nonexistent/config.json"),
    "generation config 100,000 deep": replace_file("generation_config.json", DEEP),
    "generation config with text ids": replace_file("generation_config.json", b'{"eos_token_id": "2"}'),
    "generation config with negative ids": replace_file("generation_config.json", b'{"eos_token_id": [-1]}'),
    "generation config with NaN": replace_file("generation_config.json", b'{"temperature": NaN}'),
    "generation config is a link out": link("generation_config.json", "/etc/passwd"),
    "index 100,000 deep": replace_file("model.safetensors.index.json", DEEP),
    "index without a map": edit_index(lambda index: index.pop("weight_map")),
    "index with an empty map": edit_index(lambda index: index.update(weight_map={})),
    "index maps to numbers": edit_index(lambda index: index["weight_map"].update({"model.norm.weight": 3})),
    "index is a link out": link("model.safetensors.index.json", "/etc/hostname"),
    "shard by absolute path": shard_named("/etc/passwd"),
    "shard through ..": shard_named("../good/model.safetensors"),
    "shard is ..": shard_named(".."),
    "shard is empty": shard_named(""),
    "shard in a subfolder": shard_named("sub/model.safetensors"),
    "shard with a backslash": shard_named("..\\model.safetensors"),
    "shard with a NUL": shard_named("model\0.safetensors"),
    "shard that is code": shard_named("model.py"),
    "shard that is missing": shard_named("model-00009-of-00009.safetensors"),
    "shard that lacks its tensor": edit_index(
        lambda index: index["weight_map"].update({"model.norm.bias": index["weight_map"]["model.norm.weight"]})
    ),
    "shard is a link out": lambda folder: link(first_shard(folder).name, "/etc/passwd")(folder),
    "shard links to itself": lambda folder: link(first_shard(folder).name, first_shard(folder).name)(folder),
    "shard is a folder": lambda folder: (
        first_shard(folder).unlink(),
        (folder / "x").mkdir(),
        shard_named("x")(folder),
    )[2],
    "shard is a pipe": lambda folder: (
        (name := first_shard(folder)).unlink(),
        os.mkfifo(name),
    )[1],
    "shard is truncated": truncate_shard,
    "shard with a header of 2^63 bytes": huge_header,
    "shard holds a tensor of another": lambda folder: (
        write_safetensors(folder / "model-00003-of-00003.safetensors", {"model.norm.weight": np.ones(64, np.float32)})
        or shard_named("model-00003-of-00003.safetensors")(folder)
    ),
    "tensor is missing": edit_weights(drop(UP)),
    "bias is missing": edit_weights(drop("model.layers.1.self_attn.q_proj.bias")),
    "head is missing": edit_weights(drop("lm_head.weight")),
    "tensor too much": edit_weights(lambda arrays: arrays.update(extra=np.ones(3, np.float32))),
    "layer too much": edit_config(num_hidden_layers=1),
    "layer too few": edit_config(num_hidden_layers=3),
    "wrong shape": edit_weights(lambda arrays: arrays.update({UP: np.ones((96, 63), np.float32)})),
    "transposed": edit_weights(lambda arrays: arrays.update({UP: np.ones((64, 96), np.float32)})),
    "right size in another shape": edit_weights(lambda arrays: arrays.update({UP: np.ones((96 * 64,), np.float32)})),
    "float64 weights": edit_weights(lambda arrays: arrays.update({UP: np.ones((96, 64))})),
    "integer weights": edit_weights(lambda arrays: arrays.update({UP: np.ones((96, 64), np.int8)})),
    "config that needs 2^40 weights": edit_config(vocab_size=1 << 24, hidden_size=1 << 20),
    "pickle that calls": bin_with(torch_saved(Canary)),
    "pickle that calls among weights": bin_with(
        torch_saved(lambda folder: {"model.norm.weight": torch.ones(64), "x": Canary(folder)})
    ),
    "bare pickle that calls": bin_with(lambda folder: pickle.dumps(Canary(folder))),
    "pickle in a zip": bin_with(
        lambda folder: (
            zipfile.ZipFile(folder.parent / "z", "w").writestr("archive/data.pkl", pickle.dumps(Canary(folder), 2)),
            (folder.parent / "z").read_bytes(),
        )[1]
    ),
    "bin that is text": bin_with(lambda folder: b"import os; os.system('touch canary')"),
    "bin that is empty": bin_with(lambda folder: b""),
    "bin that is a zip bomb": bin_with(bomb),
    "bin with a list": bin_with(torch_saved(lambda folder: [torch.ones(3)])),
    "bin with a number": bin_with(torch_saved(lambda folder: {"model.norm.weight": 3})),
    "bin with strides of zero": bin_with(
        torch_saved(lambda folder: {"model.norm.weight": torch.ones(1).as_strided((1 << 40,), (0,))})
    ),
    "bin with a sparse tensor": bin_with(torch_saved(lambda folder: {"model.norm.weight": torch.ones(64).to_sparse()})),
    "truncated bin": bin_with(lambda folder: torch_saved(lambda _: {"a": torch.ones(64)})(folder)[:-30]),
}


@pytest.mark.parametrize("fault", FOLDERS)
def test_hostile_folders_are_refused_in_one_sentence(fault: str, good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    assert open_model(folder).parameters()
    FOLDERS[fault](folder)
    before = {path.name for path in tmp_path.iterdir()}
    tracemalloc.start()
    with pytest.raises((FormatError, MissingError)) as caught:
        open_model(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    check_sentence(caught.value, folder)
    assert peak < 32 << 20
    assert {path.name for path in tmp_path.iterdir()} == before  # no canary, nothing written


def check_sentence(error: KiloqError, place: Path) -> None:
    assert str(error).startswith(str(place))
    assert str(error).isprintable()
    assert len(str(error)) < 600


def rebuilt(**metadata: Any) -> Callable[[GGUFFile, Path], None]:
    """The file again with other metadata; None removes a key."""

    def change(file: GGUFFile, path: Path) -> None:
        values = {key.replace("__", "."): value for key, value in metadata.items()}
        merged = {key: value for key, value in (dict(file.metadata) | values).items() if value is not None}
        write_gguf(path, merged, copies(file))

    return change


def copies(file: GGUFFile) -> list[GGUFTensor]:
    return [GGUFTensor(n, file.info(n)[0], file.info(n)[1], lambda n=n: file.raw(n)) for n in file.names()]


def with_tensor(name: str, array: np.ndarray) -> Callable[[GGUFFile, Path], None]:
    def change(file: GGUFFile, path: Path) -> None:
        kept = [tensor for tensor in copies(file) if tensor.name != name]
        write_gguf(path, dict(file.metadata), [*kept, GGUFTensor(name, "F32", array.shape, lambda: array)])

    return change


def without(name: str) -> Callable[[GGUFFile, Path], None]:
    def change(file: GGUFFile, path: Path) -> None:
        write_gguf(path, dict(file.metadata), [tensor for tensor in copies(file) if tensor.name != name])

    return change


GGUFS: dict[str, Callable[[GGUFFile, Path], None]] = {
    "another architecture": rebuilt(general__architecture="mamba"),
    "architecture with control characters": rebuilt(general__architecture="\x1b[2J\x07"),
    "architecture is a number": rebuilt(general__architecture=3),
    "no architecture": rebuilt(general__architecture=None),
    "no layers": rebuilt(llama__block_count=0),
    "2^32-1 layers": rebuilt(llama__block_count=2**32 - 1),
    "layers as text": rebuilt(llama__block_count="2"),
    "no heads": rebuilt(llama__attention__head_count=0),
    "heads that differ by layer": rebuilt(llama__attention__head_count=np.array([4, 2], np.int32)),
    "heads for too few layers": rebuilt(llama__attention__head_count=np.array([4], np.int32)),
    "heads as an empty list": rebuilt(llama__attention__head_count_kv=np.array([], np.int32)),
    "head size that does not divide": rebuilt(llama__attention__key_length=None, llama__attention__head_count=7),
    "values of another size": rebuilt(llama__attention__value_length=32),
    "experts": rebuilt(llama__expert_count=8),
    "longrope": rebuilt(llama__rope__scaling__type="longrope", llama__rope__scaling__factor=4.0),
    "rope stretched by NaN": rebuilt(llama__rope__scaling__type="linear", llama__rope__scaling__factor=float("nan")),
    "rope stretched backwards": rebuilt(llama__rope__scaling__type="yarn", llama__rope__scaling__factor=-4.0),
    "rope stretched by text": rebuilt(llama__rope__scaling__factor="4"),
    "rope type is a number": rebuilt(llama__rope__scaling__type=3),
    "yarn of no length": rebuilt(
        llama__rope__scaling__type="yarn",
        llama__rope__scaling__factor=4.0,
        llama__rope__scaling__original_context_length=2**40,
    ),
    "yarn without magnitude": rebuilt(
        llama__rope__scaling__type="yarn", llama__rope__scaling__factor=4.0, llama__rope__scaling__attn_factor=0.0
    ),
    "yarn with a ramp that llama.cpp ignores": rebuilt(
        llama__rope__scaling__type="yarn", llama__rope__scaling__factor=4.0, llama__rope__scaling__yarn_beta_fast=16.0
    ),
    "magnitude without yarn": rebuilt(llama__rope__scaling__factor=4.0, llama__rope__scaling__attn_factor=1.5),
    "sliding window": rebuilt(llama__attention__sliding_window=64),
    "part of the head rotated": rebuilt(llama__rope__dimension_count=8),
    "epsilon is infinite": rebuilt(llama__attention__layer_norm_rms_epsilon=float("inf")),
    "rope base is NaN": rebuilt(llama__rope__freq_base=float("nan")),
    "width that the tensors lack": rebuilt(llama__embedding_length=128),
    "huge width": rebuilt(llama__embedding_length=2**31),
    "end id as text": rebuilt(tokenizer__ggml__eos_token_id="2"),
    "no embedding": without("token_embd.weight"),
    "a layer's norm is missing": without("blk.1.ffn_norm.weight"),
    "unknown tensor": with_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32)),
    "wrong shape": with_tensor("blk.0.ffn_up.weight", np.ones((96, 96), np.float32)),
    "too few rope factors": with_tensor("rope_freqs.weight", np.full(4, 2, np.float32)),
    "rope factors in rows": with_tensor("rope_freqs.weight", np.full((2, 4), 2, np.float32)),
    "rope factors of zero": with_tensor("rope_freqs.weight", np.zeros(8, np.float32)),
    "negative rope factors": with_tensor("rope_freqs.weight", np.full(8, -2, np.float32)),
    "rope factors of NaN": with_tensor("rope_freqs.weight", np.full(8, np.nan, np.float32)),
    "huge rope factors": with_tensor("rope_freqs.weight", np.full(8, 1e30, np.float32)),
    "embedding of one dimension": with_tensor("token_embd.weight", np.ones(64, np.float32)),
}


@pytest.fixture(scope="module")
def good_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    path = folder / "good.gguf"
    write_gguf_file(open_model(save(tiny("llama"), folder / "model")), path, "f32")
    return path


@pytest.mark.parametrize("fault", GGUFS)
def test_hostile_ggufs_are_refused_in_one_sentence(fault: str, good_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    GGUFS[fault](GGUFFile(good_gguf), path)
    with pytest.raises((FormatError, MissingError)) as caught:
        open_model(path)
    check_sentence(caught.value, path)


def test_rope_factors_of_one_change_nothing(good_gguf: Path, tmp_path: Path) -> None:
    with_tensor("rope_freqs.weight", np.ones(8, np.float32))(GGUFFile(good_gguf), tmp_path / "a.gguf")
    assert open_model(tmp_path / "a.gguf").config == open_model(good_gguf).config


def test_there_are_at_least_40_cases() -> None:
    assert len(FOLDERS) + len(GGUFS) >= 40
