"""Standard door out for llama.cpp: one GGUF file with the network and its tokenizer.

The architecture is the smallest that computes the model exactly: query/key norm -> qwen3, QKV bias -> qwen2, else
llama (with Q and K rows in the order that llama.cpp rotates). Norms and biases are float32 as llama.cpp's own
converter writes them; matrices whose rows are no multiple of 32 stay float16 in the quantised types. Integers that the
source stores already (GPTQ, Q4_0, Q8_0) go over as they are where Q4_0 or Q8_0 can hold them: no second rounding.
Source: ggml-org/ggml docs/gguf.md (keys, token types); byte-to-character table of GPT-2's BPE.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kiloq.convert import gguf_names, rope
from kiloq.convert.card import licence_of
from kiloq.convert.generation import gguf_sampling
from kiloq.convert.gguf_pieces import piece_metadata, piece_notes
from kiloq.convert.integers import to_blocks
from kiloq.convert.layout import llama_rows
from kiloq.convert.reshape import Reshaped
from kiloq.convert.source import ModelSource
from kiloq.convert.write import IM_END, Progress, Written, end_ids, load_tokenizer
from kiloq.core.errors import FormatError, UsageError
from kiloq.core.gguf_write import GGUFTensor, write_gguf
from kiloq.tokenize.export import chat_template
from kiloq.tokenize.foreign import to_printable
from kiloq.tokenize.sentencepiece import PieceVocabulary
from kiloq.tokenize.vocabulary import Vocabulary

if TYPE_CHECKING:
    from kiloq.tokenize.tokenizer import Tokenizer

# --dtype -> (ggml type of matrices, llama.cpp's file type number LLAMA_FTYPE_*)
TYPES = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32), "q8_0": ("Q8_0", 7), "q4_0": ("Q4_0", 2)}
BLOCK = 32  # elements in a block of Q8_0 and Q4_0
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of GGUF


def write_gguf_file(
    source: ModelSource, out: Path | str, dtype: str = "f16", *, progress: Progress | None = None
) -> Written:
    """Write `source` to the file `out`, complete or not at all, and say what llama.cpp will not compute."""
    if dtype not in TYPES:
        raise UsageError(f"dtype {dtype!r} is unknown: choose one of {', '.join(TYPES)}")
    out, config = Path(out), source.config
    if out.is_dir():
        raise UsageError(f"{out} is a folder: give the name of a .gguf file")
    arch, tokenizer, notes = gguf_names.arch_for(config), load_tokenizer(source), []
    metadata = {
        **gguf_names.write_metadata(config, arch),
        "general.name": out.stem,
        "general.file_type": TYPES[dtype][1],
        "general.quantization_version": 2,
        **gguf_sampling(source.generation),
    }
    if licence := licence_of(source):
        metadata["general.license"] = licence
    if tokenizer is None:
        notes.append("the source has no tokenizer, so the file has none: llama.cpp will not load it")
    else:
        metadata |= tokenizer_metadata(tokenizer, source)
        notes += piece_notes(tokenizer.export_vocabulary())
    tensors = Reshaped(source, config)
    names = tensors.names()
    listed = [_tensor(tensors, name, arch, dtype) for name in names]
    divisors = rope.gguf_table(config)
    if divisors is not None:
        listed.append(GGUFTensor(rope.FREQS, "F32", divisors.shape, lambda: divisors))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(out, metadata, [_watched(tensor, progress, at, len(listed)) for at, tensor in enumerate(listed)])
    if config.dynamic_ntk or config.logn:
        notes.append(
            f"dynamic NTK and LogN cannot be expressed in GGUF: llama.cpp gives equal logits up to "
            f"{config.train_length} tokens, and beyond that only kiloq (which reads its own keys) does"
        )
    return Written(out, notes, sum(math.prod(tensors.shape(name)) for name in names), out.stat().st_size)


def _tensor(tensors: Reshaped, name: str, arch: str, dtype: str) -> GGUFTensor:
    shape, heads = tensors.shape(name), gguf_names.permuted_heads(name, tensors.config, arch)

    def make() -> npt.NDArray[Any]:
        stored = tensors.source.integers(name) if len(shape) == 2 and name in tensors.source.names() else None
        blocks = to_blocks(stored, kind) if stored is not None else None
        values = tensors.tensor(name) if blocks is None else blocks
        return llama_rows(values, heads) if heads else values

    last = name == "lm_head.weight" or (name == "embed_tokens.weight" and tensors.config.tied_embeddings)
    kind = type_of(shape, dtype, last)
    return GGUFTensor(gguf_names.stored_name(name), kind, shape, make)


def type_of(shape: tuple[int, ...], dtype: str, last: bool) -> str:
    """The ggml type of a tensor: vectors F32; matrices as asked, F16 where blocks do not fit their rows.

    The `last` matrix, which makes the logits, keeps 8 bits in a 4-bit file; llama.cpp gives it more bits too.
    """
    kind = TYPES[dtype][0]
    if len(shape) == 1:
        return "F32"
    if kind in ("Q4_0", "Q8_0") and shape[-1] % BLOCK:
        return "F16"
    return "Q8_0" if kind == "Q4_0" and last else kind


def _watched(tensor: GGUFTensor, progress: Progress | None, done: int, total: int) -> GGUFTensor:
    """The tensor, saying to `progress` when its turn comes."""
    if progress is None:
        return tensor

    def make() -> npt.NDArray[Any]:
        progress(tensor.name, done, total)
        return tensor.make()

    return replace(tensor, make=make)


def tokenizer_metadata(tokenizer: Tokenizer, source: ModelSource) -> dict[str, Any]:
    """tokenizer.ggml.* of a vocabulary, padded to the rows of the embedding."""
    vocabulary, rows = tokenizer.export_vocabulary(), source.config.vocab_size
    if vocabulary.size > rows:
        raise FormatError(
            f"{source.tokenizer_path}: has {vocabulary.size} tokens for an embedding of {rows} rows: "
            "it is the tokenizer of another model"
        )
    if isinstance(vocabulary, PieceVocabulary):
        values = piece_metadata(vocabulary, rows)
    else:
        assert isinstance(vocabulary, Vocabulary), "there are two kinds of vocabulary"
        values = _byte_metadata(vocabulary, rows)
    values["tokenizer.ggml.add_bos_token"] = vocabulary.add_bos
    ends = end_ids(source.generation, tokenizer) or vocabulary.eos_ids
    ids = {
        "eos": next(iter(ends), None),
        "eot": vocabulary.special.get(IM_END),
        "padding": vocabulary.pad_id,
        "bos": vocabulary.pad_id if vocabulary.bos_id is None else vocabulary.bos_id,
    }
    values |= {f"tokenizer.ggml.{role}_token_id": token for role, token in ids.items() if token is not None}
    return values | ({"tokenizer.chat_template": template} if (template := chat_template(vocabulary)) else {})


def _byte_metadata(vocabulary: Vocabulary, rows: int) -> dict[str, Any]:
    """tokenizer.ggml.* of byte-level BPE, without roles."""
    texts = [to_printable(token) if token else f"[PAD{at}]" for at, token in enumerate(vocabulary.tokens)]
    texts += [f"[PAD{at}]" for at in range(vocabulary.size, rows)]
    types = np.full(rows, NORMAL, np.int32)
    types[[at for at, token in enumerate(vocabulary.tokens) if not token] + list(range(vocabulary.size, rows))] = UNUSED
    for token in vocabulary.added:
        texts[token.id], types[token.id] = token.text, CONTROL if token.special else USER_DEFINED
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{to_printable(left)} {to_printable(right)}" for left, right in vocabulary.merges],
    }
