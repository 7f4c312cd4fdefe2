"""A model's weights into the native engine: which precision each matrix gets, and its rows, streamed.

Stored integers (GGUF's Q4_0, Q4_1, Q8_0 and GPTQ) go in as they are, without a second rounding: four bits also where
eight are asked for. GGUF's blocks go in straight from the mapped file; everything else is converted row range by row
range, so the peak is the packed model plus one piece of a tensor. Packed weights may be kept in a file (`packed.py`),
which the next load maps instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kiloq.convert.integers import BLOCK, LAYOUTS, Integers
from kiloq.convert.source import ModelSource
from kiloq.core.errors import KiloqError, UsageError
from kiloq.generate.packed import PackedFile, packed_file
from kiloq.model.config import ModelConfig

PIECE_ELEMENTS = 1 << 22  # of a matrix, converted at a time
GROUP = 32  # columns that share a scale where we quantise: GGUF's block, and the finest that the kernels have
# Our own four bits keep a minimum, which costs half a bit and halves the error; eight bits are symmetric.
OFFSETS = {"int4": "minimum", "int8": "none"}


@dataclass(frozen=True)
class Slot:
    """One matrix before it is packed."""

    name: str
    rows: int
    columns: int
    format: str
    offset: str = "none"
    group: int = GROUP
    stored: bool = False  # from the file's own integers
    blocks: str | None = None  # and these are in blocks of this ggml type
    order: npt.NDArray[np.int32] | None = None  # the column that stands at each place


def slots(source: ModelSource, weights: str) -> dict[str, Slot]:
    """How every matrix of the model is stored, by canonical name.

    weights: "auto" (stored integers as they are; else the stored precision, fp16 as fp32, other quantised types as
    int8), "fp32", "bf16", "int8" or "int4". The embedding and the head get eight bits where the others get four.
    """
    return {name: _slot(source, name, weights) for name in source.names() if len(source.shape(name)) == 2}


def _slot(source: ModelSource, name: str, weights: str) -> Slot:
    rows, columns = source.shape(name)
    wanted = weights
    if weights == "int4" and name in ("embed_tokens.weight", "lm_head.weight"):
        wanted = "int8"
    if (kind := source.block_type(name)) is not None:
        bits, head = LAYOUTS[kind]
        if wanted in ("auto", f"int{bits}"):
            offset = "minimum" if head == 2 else "none"
            return Slot(name, rows, columns, f"int{bits}", offset, BLOCK, stored=True, blocks=kind)
    sample = source.integers(name, rows=(0, 1)) if wanted in ("auto", "int8", "int4") else None
    bits = {"int8": 8, "int4": 4}.get(wanted, sample.bits if sample else 0)
    if sample is not None and sample.bits <= bits:
        stored = _stored_slot(name, rows, columns, sample, bits)
        if stored is not None:
            return stored
    if wanted == "auto":
        wanted = source.dtype_of(name) if source.stored_in_floats(name) else "int8"
        wanted = "fp32" if wanted == "fp16" else wanted
    return Slot(name, rows, columns, wanted, OFFSETS.get(wanted, "none"))


def _stored_slot(name: str, rows: int, columns: int, sample: Integers, bits: int) -> Slot | None:
    """The slot of a file's own integers in `bits` bits; None where the kernels have no form for them."""
    order = None
    if sample.g_idx is not None:
        counts = np.bincount(sample.g_idx)
        if (counts[:-1] != sample.group).any() or counts[-1] > sample.group:
            return None
        order = np.argsort(sample.g_idx, kind="stable").astype(np.int32)
        if (order == np.arange(columns)).all():
            order = None
    if sample.group % GROUP and sample.group < columns:
        return None
    offset = "zero" if sample.zero is not None else "minimum" if sample.minimum is not None else "none"
    group = sample.group if sample.group < columns else 0
    return Slot(name, rows, columns, f"int{bits}", offset, group, stored=True, order=order)


class Packer:
    """Packs matrices into one arena, or finds them packed in a file."""

    def __init__(
        self, native: Any, source: ModelSource, plan: dict[str, Slot], threads: int, keep: Path | None = None
    ) -> None:
        self._native, self._source, self._threads = native, source, threads
        sizes = [native.Matrix.bytes(s.rows, s.columns, s.format, s.offset, s.group) for s in plan.values()]
        self.total_bytes = sum(sizes)
        self.broken: list[str] = []
        self._file: PackedFile | None = None
        if keep is not None:
            self._file = packed_file(keep, source, plan, self.total_bytes, native.PACKED_LAYOUT)
        self.mapped = self._file is not None and self._file.current
        self.arena = self._file.mapped(native) if self._file and self.mapped else native.Arena(self.total_bytes)

    def matrix(self, slot: Slot) -> Any:
        """The packed matrix; a tensor with NaN or infinity is noted in `broken`."""
        matrix = self._native.Matrix(self.arena, slot.rows, slot.columns, slot.format, slot.offset, slot.group)
        finite = True
        for first, end in () if self.mapped else _pieces(slot):
            if slot.blocks is not None:
                blocks = np.ascontiguousarray(self._source.blocks(slot.name, first, end))
                finite &= bool(matrix.put_blocks(first, blocks, slot.blocks, self._threads))
            elif slot.stored:
                finite &= self._put_integers(matrix, slot, first, end)
            else:
                finite &= self._put_numbers(matrix, slot, first, end)
            self._source.release_pages()  # a file that is read once must not stand beside what is made of it
        if not finite:
            self.broken.append(slot.name)
        return matrix

    def keep(self) -> None:
        """Writes the file, where there is to be one; of broken weights none is kept, so that each load warns of them."""
        if self._file is None or self.mapped or self.broken:
            return
        try:
            self._file.write(self.arena)
        except KiloqError as error:
            self._source.warnings.append(f"the packed weights are not kept: {error}")

    def _put_integers(self, matrix: Any, slot: Slot, first: int, end: int) -> bool:
        found = self._source.integers(slot.name, rows=(first, end))
        assert found is not None
        codes = found.codes if slot.order is None else found.codes[:, slot.order]
        if slot.offset == "none" and slot.format != f"int{found.bits}":
            codes = codes + np.uint8(128 - 8)  # from the middle of four bits to that of eight
        with np.errstate(over="ignore"):
            scale = found.scale.astype(np.float16)
        parts = [part for part in (scale, found.minimum) if part is not None]
        bits = [np.ascontiguousarray(part).view(np.uint16) for part in parts]
        minimums = bits[1] if found.minimum is not None else None
        zeros = None if found.zero is None else np.ascontiguousarray(found.zero)
        matrix.put_codes(first, np.ascontiguousarray(codes), bits[0], zeros, minimums, self._threads)
        return all(bool(np.isfinite(part).all()) for part in parts)

    def _put_numbers(self, matrix: Any, slot: Slot, first: int, end: int) -> bool:
        part, kind = _bits(self._source.rows(slot.name, first, end))
        return bool(matrix.put_numbers(first, part, kind, self._threads))


def _pieces(slot: Slot) -> Iterator[tuple[int, int]]:
    """Row ranges of at most PIECE_ELEMENTS, in whole blocks of 16."""
    step = max(16, PIECE_ELEMENTS // slot.columns // 16 * 16)
    return ((first, min(first + step, slot.rows)) for first in range(0, slot.rows, step))


def _bits(array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], str]:
    """The array as the engine takes it, and the name of its type."""
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16), "bf16"
    if array.dtype == np.float16:
        return array.view(np.uint16), "fp16"
    return array.astype(np.float32, copy=False), "fp32"


def decoder(
    native: Any, source: ModelSource, plan: dict[str, Slot], *, kv: str, threads: int, cache_bytes: int,
    tell: Callable[[float], None], keep: Path | None = None,
) -> Any:  # fmt: skip
    """The native decoder with the model's weights. `tell` gets the share that is packed, 0 to 1.

    keep: a file of packed weights, mapped where it holds these and else written.
    """
    packer = Packer(native, source, plan, threads, keep)
    config = source.config
    vectors = {name: _vector(source, name, packer) for name in source.names() if name not in plan}
    layers = []
    embedding = packer.matrix(plan["embed_tokens.weight"])
    for layer in range(config.num_layers):
        layers.append(_layer(packer, plan, vectors, config, layer))
        tell((layer + 1) / config.num_layers)
    top = embedding if config.tied_embeddings else packer.matrix(plan["lm_head.weight"])
    packer.keep()
    source.warn_of_broken(packer.broken)
    head = {"parts": [top], "biases": [None], "order": None}
    return native.Decoder(
        packer.arena, _config(config), layers, embedding, head, vectors["norm.weight"],
        cache_format=kv, cache_limit_bytes=cache_bytes, threads=threads,
    )  # fmt: skip


def _vector(source: ModelSource, name: str, packer: Packer) -> npt.NDArray[np.float32]:
    values = np.ascontiguousarray(source.tensor(name).astype(np.float32))
    if not np.isfinite(values).all():
        packer.broken.append(name)
    return values


def _layer(packer: Packer, plan: dict[str, Slot], vectors: dict[str, Any], config: ModelConfig, layer: int) -> Any:
    prefix = f"layers.{layer}."

    def linear(*names: str) -> dict[str, Any]:
        parts = [plan[f"{prefix}{name}.weight"] for name in names]
        orders = {None if part.order is None else part.order.tobytes() for part in parts}
        if len(orders) > 1:
            raise UsageError(
                f"{prefix}{names[0]} and its neighbours are quantised in different column orders: load it with --weights bf16"
            )
        biases = [vectors.get(f"{prefix}{name}.bias") for name in names]
        return {"parts": [packer.matrix(part) for part in parts], "biases": biases, "order": parts[0].order}

    return {
        "input_layernorm": vectors[f"{prefix}input_layernorm.weight"],
        "post_attention_layernorm": vectors[f"{prefix}post_attention_layernorm.weight"],
        "q_norm": vectors.get(f"{prefix}self_attn.q_norm.weight"),
        "k_norm": vectors.get(f"{prefix}self_attn.k_norm.weight"),
        "qkv": linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "output": linear("self_attn.o_proj"),
        "gate_up": linear("mlp.gate_proj", "mlp.up_proj"),
        "down": linear("mlp.down_proj"),
        "window": config.window(layer) or 0,
    }


def _config(c: ModelConfig) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "ffn_size", "rotary_dim")
    scaling = c.rope_scaling
    return {name: getattr(c, name) for name in names} | {
        "train_length": c.train_length,
        "logn": c.logn,
        "norm_eps": c.norm_eps,
        "rope_base": c.rope_base,
        "rope_magnitude": scaling.attention_factor if scaling else 1.0,
        "rope_divisors": list(scaling.factors(c.rotary_dim, c.rope_base)) if scaling else [],
    }
