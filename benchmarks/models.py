"""The models that speed is measured on, as GGUF files that kiloq and llama.cpp both read; made when first asked for.

    python benchmarks/models.py [FOLDER]     all of them, about 9 GB

`default` is the default model: its own Q4_1 file, and Q8_0 and BF16 files of the same values. `0.3b` and `1.8b` are
Qwen shapes with random weights (speed does not depend on the values): integers and scales are drawn directly, so that
a file takes seconds and one tensor of memory. They have no vocabulary and no dynamic NTK or LogN, which llama.cpp does
not compute. Source of the 1.8 B shape: Qwen technical report, Table 1; the 0.3 B is ours.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kiloq.convert import gguf_names
from kiloq.convert.source import open_model
from kiloq.convert.write import write_folder
from kiloq.convert.write_gguf import TYPES, write_gguf_file
from kiloq.core.gguf import GGUFFile
from kiloq.core.gguf_write import GGUFTensor, write_gguf
from kiloq.core.paths import cache_dir
from kiloq.model.config import SERIES, ModelConfig
from kiloq.model.shapes import Shape, tensor_shapes

SHAPES = {
    "0.3b": ModelConfig(
        num_layers=12, hidden_size=1024, num_heads=8, ffn_size=2816, vocab_size=151_936, train_length=32_768
    ),
    "1.8b": SERIES["qwen-1.8b"].replace(train_length=32_768, max_length=32_768, dynamic_ntk=False, logn=False),
}
MODELS = ("default", *SHAPES)
# Sizes of which loading and quantising are measured: Qwen1.5-0.5B (its config.json) and Qwen-7B (the report's Table 1).
# "quick" is ours, to see that the programs work.
LARGER = {
    "0.5b": ModelConfig(num_layers=24, hidden_size=1024, num_heads=16, ffn_size=2816, vocab_size=151_936),
    "7b": SERIES["qwen-7b"].replace(dynamic_ntk=False, logn=False),
    "quick": ModelConfig(num_layers=2, hidden_size=128, num_heads=4, ffn_size=256, vocab_size=512),
}
BITS = {"int4": "q4_0", "int8": "q8_0", "bf16": "bf16"}  # kiloq's name of the weights -> type of the file
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"  # the only 4-bit file of the default model, used as it is
WEIGHT_STD = 0.02  # of the drawn weights: keeps activations near those of a trained model


def default_folder() -> Path:
    """Where the files are kept unless another folder is named."""
    return cache_dir() / "benchmarks"


def model_file(model: str, weights: str, folder: Path) -> Path:
    """The GGUF file of a model at a precision (a key of BITS), made where it is not there yet."""
    if model == "default":
        original = cache_dir() / "assets" / DEFAULT_FILE
        if not original.exists():
            raise SystemExit(f"{original} is not there: run `kiloq get smollm2`")
        if weights == "int4":
            return original
    path = folder / f"{model}.{BITS[weights]}.gguf"
    if not path.exists():
        print(f"making {path}", file=sys.stderr)
        if model == "default":
            write_gguf_file(open_model(original), path, BITS[weights])
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _write_random((SHAPES | LARGER)[model], path, BITS[weights])
    return path


def model_folder(model: str, folder: Path) -> Path:
    """The BF16 file as a Hugging Face folder, for transformers; made where it is not there yet."""
    path = folder / f"{model}-hf"
    if not (path / "config.json").exists():
        file = model_file(model, "bf16", folder)
        print(f"making {path}", file=sys.stderr)
        write_folder(open_model(file), path)
    return path


def weight_bytes_per_token(path: Path) -> int:
    """Bytes of weights that one decoded token reads: all matrices, of an untied embedding a single row."""
    file = GGUFFile(path)
    untied = "output.weight" in file.names()
    skipped = {"token_embd.weight"} if untied else set()
    return sum(file.raw(name).nbytes for name in file.names() if name not in skipped)


def _write_random(config: ModelConfig, path: Path, dtype: str) -> None:
    kind, file_type = TYPES[dtype]
    metadata = {
        **gguf_names.write_metadata(config, "qwen2"),
        "general.name": path.stem,
        "general.file_type": file_type,
        "general.quantization_version": 2,
        "tokenizer.ggml.model": "no_vocab",
    }
    draw = np.random.default_rng(0)
    write_gguf(path, metadata, [_tensor(name, shape, kind, draw) for name, shape in tensor_shapes(config).items()])


def _tensor(name: str, shape: Shape, kind: str, draw: np.random.Generator) -> GGUFTensor:
    stored = gguf_names.stored_name(name)
    if name.endswith("norm.weight"):
        return GGUFTensor(stored, "F32", shape, lambda: np.ones(shape, np.float32))
    if len(shape) == 1:
        return GGUFTensor(stored, "F32", shape, lambda: draw.normal(0, WEIGHT_STD, shape).astype(np.float32))
    encode = {"Q4_0": _q4_0, "Q8_0": _q8_0, "BF16": _bf16}[kind]
    return GGUFTensor(stored, kind, shape, lambda: encode(math.prod(shape), draw))


def _q4_0(count: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of 32 weights: a float16 scale, then two weights a byte; a weight is (0..15 - 8) times the scale."""
    blocks = _bytes((count // 32, 18), draw)
    return _with_scales(blocks, WEIGHT_STD / math.sqrt((16**2 - 1) / 12), draw)


def _q8_0(count: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of 32 weights: a float16 scale, then a signed byte a weight."""
    blocks = _bytes((count // 32, 34), draw)
    return _with_scales(blocks, WEIGHT_STD / math.sqrt((256**2 - 1) / 12), draw)


def _with_scales(blocks: NDArray[np.uint8], scale: float, draw: np.random.Generator) -> NDArray[np.uint8]:
    scales = draw.uniform(0.5 * scale, 1.5 * scale, len(blocks)).astype(np.float16)
    blocks[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def _bf16(count: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """Random signs and fractions with magnitudes from 2^-8 to 2^-5: a standard deviation of about 0.014."""
    bits = _bytes((2 * count,), draw).view(np.uint16)
    exponents = np.array([119, 120, 121], np.uint16)[(bits >> 7) % 3]  # bfloat16: 1 sign, 8 exponent, 7 fraction bits
    return ((bits & 0x807F) | (exponents << 7)).view(np.uint8)


def _bytes(shape: tuple[int, ...], draw: np.random.Generator) -> NDArray[np.uint8]:
    return draw.integers(0, 256, shape, np.uint8)


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    for model in MODELS:
        for weights in BITS:
            file = model_file(model, weights, where)
            print(f"{model:8} {weights:5} {weight_bytes_per_token(file) / 1e6:8.1f} MB a token  {file}")
