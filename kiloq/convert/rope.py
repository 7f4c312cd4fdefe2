"""Rope scaling as config.json and GGUF say it, both directions; everything that kiloq does not compute is refused.

config.json: `rope_scaling` with `type` or `rope_type` (transformers 4), or `rope_parameters` (transformers 5, whose
documentation is the source); where both are there they must agree. GGUF: the keys `<arch>.rope.scaling.*`, and the
tensor `rope_freqs.weight`, which llama.cpp applies in arch llama only and which LLaMA 3.1's rule comes as. llama.cpp
reads no ramp of YaRN from the four architectures here, so only its usual one can be said in GGUF.
Source: ggml-org/llama.cpp, src/llama-model.cpp, src/llama-context.cpp and ggml's rope; gguf-py's list of keys.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kiloq.convert.fields import Fields, shortest
from kiloq.core.errors import FormatError
from kiloq.core.files import shown
from kiloq.core.gguf import GGUFFile
from kiloq.model.config import ModelConfig
from kiloq.model.rope_scaling import MAX_LENGTH, RopeScaling, yarn_magnitude

HOLDERS = ("rope_scaling", "rope_parameters")  # the first wins, as in transformers 5
# Partial rotary positions under a name that nobody else knows: other programs refuse the folder, where they would
# ignore a partial_rotary_factor and compute something else.
PARTIAL_ROPE = "kiloq_partial"
PLAIN = ("default", PARTIAL_ROPE)  # types without scaling
FREQS = "rope_freqs.weight"
# LLaMA 3.1 to 3.3: low and high turns and the original length are the same in all of them, the factor is 8 or 32.
LLAMA3: dict[str, Any] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 8192}
TABLE_TOLERANCE = 1e-5  # relative: a table is float32, made by float32 arithmetic
# YaRN's keys of GGUF that only other architectures read, and the values that change nothing.
NEUTRAL = {"yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0,
           "yarn_log_multiplier": 0.0, "alpha": 0.0}  # fmt: skip


def holders(fields: Fields) -> list[Fields]:
    """What config.json says about rotary positions, most important place first; checked to agree on the type."""
    found = [fields.fields(key) for key in HOLDERS if fields.fields(key).values]
    if len({shown(_kind(holder)) for holder in found}) > 1:
        raise FormatError(f"{fields.path}: rope_scaling and rope_parameters name different types: remove one of them")
    return found


def _kind(holder: Fields) -> Any:
    kind = holder.values.get("rope_type", holder.values.get("type"))
    return "default" if kind is None else kind


def read_config_json(fields: Fields, positions: int) -> RopeScaling | None:
    """The scaling of a config.json; None without. `positions`: its max_position_embeddings."""
    read = [_read_holder(fields, holder, positions) for holder in holders(fields)]
    if len(read) == 2 and read[0] != read[1]:
        raise FormatError(f"{fields.path}: rope_scaling and rope_parameters differ: remove one of them")
    return read[0] if read else None


def _read_holder(fields: Fields, rope: Fields, positions: int) -> RopeScaling | None:
    kind = _kind(rope)
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise FormatError(f"{fields.path}: has other rotary positions for each kind of layer, which is not computed")
    if kind in PLAIN:
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise FormatError(
            f"{fields.path}: asks for rotary positions of type {shown(kind)}, which kiloq does not compute: "
            "it knows linear, llama3 and yarn"
        )
    if not 0 < positions <= MAX_LENGTH:
        raise FormatError(f"{fields.path}: max_position_embeddings is {shown(positions)}, which no model has")
    if kind == "linear":
        return _unless_plain(RopeScaling(kind="linear", factor=rope.float("factor")))
    original = fields.int("original_max_position_embeddings", rope.int("original_max_position_embeddings", positions))
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=rope.float("factor"),
            original_length=original,
            low_freq_factor=rope.float("low_freq_factor"),
            high_freq_factor=rope.float("high_freq_factor"),
        )
    factor = rope.float("factor", positions / original if original else 0.0)
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_length=original,
        beta_fast=rope.float("beta_fast", 32.0),
        beta_slow=rope.float("beta_slow", 1.0),
        truncate=rope.bool("truncate", True),
        attention_factor=_attention_factor(rope, factor),
    )


def _attention_factor(rope: Fields, factor: float) -> float:
    """YaRN's factor on cosine and sine: as said, or from mscale and mscale_all_dim (DeepSeek), or by the paper."""
    if "attention_factor" in rope:
        return float(rope.float("attention_factor"))
    strength, total = rope.float("mscale", 0.0), rope.float("mscale_all_dim", 0.0)
    if strength and total:
        return yarn_magnitude(factor, strength) / (yarn_magnitude(factor, total) or math.nan)
    return yarn_magnitude(factor)


def _unless_plain(scaling: RopeScaling) -> RopeScaling | None:
    return None if scaling.factor == 1 else scaling


def config_json(scaling: RopeScaling) -> dict[str, Any]:
    """`rope_scaling` of a config.json, which transformers 4 and 5 read alike. Not for the kind "factors"."""
    s, values = scaling, dict[str, Any](rope_type=scaling.kind, type=scaling.kind, factor=float(scaling.factor))
    if s.kind == "llama3":
        return values | {
            "low_freq_factor": float(s.low_freq_factor),
            "high_freq_factor": float(s.high_freq_factor),
            "original_max_position_embeddings": s.original_length,
        }
    if s.kind == "yarn":
        values |= {"original_max_position_embeddings": s.original_length, "attention_factor": s.attention_factor}
        unusual = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
        values |= {key: getattr(s, key) for key, usual in unusual.items() if getattr(s, key) != usual}
    return values


def as_formula(config: ModelConfig) -> ModelConfig:
    """The same model with the table of a GGUF replaced by the rule that makes it, which Hugging Face layouts need.

    Raises FormatError for a table of no rule known here, and for scaling of partly rotated heads.
    """
    s = config.rope_scaling
    if s is None:
        return config
    if config.rotary_dim != config.head_dim:
        raise FormatError(f"{s.kind} rope scaling of a part of each head has no place in Hugging Face layouts")
    if s.kind != "factors":
        return config
    largest = max(s.table)
    rules = [RopeScaling(kind="linear", factor=largest), RopeScaling(kind="llama3", factor=largest, **LLAMA3)]
    for rule in rules if largest > 1 else []:
        if np.allclose(rule.factors(config.rotary_dim, config.rope_base), s.table, rtol=TABLE_TOLERANCE, atol=0):
            return config.replace(rope_scaling=rule)
    raise FormatError(
        "the rope factors of this GGUF file follow neither a linear stretch nor LLaMA 3.1's rule, and Hugging Face "
        "layouts have no place for a table: export it to GGUF"
    )


def read_gguf(file: GGUFFile, arch: str, rotary_dim: int, positions: int) -> RopeScaling | None:
    """The scaling of a GGUF, as llama.cpp computes it; None without. `positions`: its context_length."""
    fields = Fields(file.path, file.metadata)
    by_keys, table = _read_keys(fields, f"{arch}.rope.scaling.", positions), _read_table(file, rotary_dim)
    if table is None:
        return by_keys
    if by_keys is not None or arch != "llama":
        found = "tensor 'rope_freqs.weight' beside rope scaling keys" if by_keys else f"{FREQS} in arch {arch}"
        raise FormatError(f"{file.path}: has {found}, which kiloq does not compute: use the model's folder")
    return table


def _read_keys(fields: Fields, prefix: str, positions: int) -> RopeScaling | None:
    kind = fields.text(f"{prefix}type", "linear")  # llama.cpp takes a factor without a type for linear
    if kind not in ("none", "linear", "yarn"):
        raise FormatError(f"{fields.path}: scales rotary positions ({shown(kind)}), which kiloq does not compute")
    old = fields.float(prefix.replace("scaling.", "scale_linear"), 0.0)
    factor = shortest(fields.float(f"{prefix}factor", old)) or 1.0  # 0 counts as absent in llama.cpp
    share = fields.float(f"{prefix}attn_factor", 1.0)
    if kind == "yarn":
        original = fields.int(f"{prefix}original_context_length", 0) or positions
        magnitude = yarn_magnitude(factor)
        _refuse_ignored(fields, prefix, magnitude)
        if share != 1:
            magnitude = shortest(share * magnitude)
        scaling = RopeScaling(kind=kind, factor=factor, original_length=original, attention_factor=magnitude)
        return scaling if share != 1 else _unless_plain(scaling)
    if share != 1:
        raise FormatError(f"{fields.path}: {prefix}attn_factor is {share} without yarn, which kiloq does not compute")
    return None if kind == "none" else _unless_plain(RopeScaling(kind="linear", factor=factor))


def _refuse_ignored(fields: Fields, prefix: str, magnitude: float) -> None:
    """Raise for a key that llama.cpp ignores in these architectures, where it would change the numbers.

    `yarn_attn_factor` may also say the usual magnitude once more: converters copy it from config.json.
    """
    for key, usual in NEUTRAL.items():
        value = fields.float(prefix + key, usual)
        copied = key == "yarn_attn_factor" and math.isclose(value, magnitude, rel_tol=1e-6)
        if value != usual and not copied:
            raise FormatError(
                f"{fields.path}: {prefix}{key} is {value}, which llama.cpp ignores in this architecture: "
                "use the model's folder"
            )


def _read_table(file: GGUFFile, rotary_dim: int) -> RopeScaling | None:
    """`rope_freqs.weight`: a divisor for each frequency; a table of ones changes nothing."""
    if FREQS not in file.names():
        return None
    shape = file.info(FREQS)[1]
    if shape != (rotary_dim // 2,):
        raise FormatError(
            f"{file.path}: tensor {FREQS!r} has shape {list(shape)}, and {rotary_dim // 2} frequencies are rotated"
        )
    divisors = file.array(FREQS).astype(np.float64)
    return None if np.all(divisors == 1.0) else RopeScaling(kind="factors", table=tuple(divisors.tolist()))


def check_gguf(config: ModelConfig, arch: str) -> None:
    """Raise FormatError where llama.cpp would not compute the model's scaling in `arch`."""
    s = config.rope_scaling
    if s is None:
        return
    if s.kind in ("llama3", "factors") and arch != "llama":
        raise FormatError(
            f"llama.cpp computes {s.kind} rope scaling in arch llama only, and this model is written as {arch}: "
            "export it with --to native"
        )
    if s.kind == "yarn" and (s.beta_fast, s.beta_slow, s.truncate) != (32, 1, True):
        raise FormatError(
            f"llama.cpp computes YaRN with beta_fast 32, beta_slow 1 and a truncated ramp only, and this model has "
            f"{s.beta_fast:g}, {s.beta_slow:g} and truncate {s.truncate}: export it with --to native"
        )


def gguf_keys(scaling: RopeScaling | None, arch: str) -> dict[str, Any]:
    """`<arch>.rope.scaling.*` of linear and YaRN; none for what is written as a tensor."""
    if scaling is None or scaling.kind not in ("linear", "yarn"):
        return {}
    prefix = f"{arch}.rope.scaling."
    values: dict[str, Any] = {f"{prefix}type": scaling.kind, f"{prefix}factor": float(scaling.factor)}
    if scaling.kind == "yarn":
        values[f"{prefix}original_context_length"] = scaling.original_length
        share = scaling.attention_factor / yarn_magnitude(scaling.factor)  # llama.cpp's own part is left out
        if share != 1:
            values[f"{prefix}attn_factor"] = share
    return values


def gguf_table(config: ModelConfig) -> npt.NDArray[np.float32] | None:
    """`rope_freqs.weight` [rotary_dim / 2] of LLaMA 3.1's rule or of another GGUF's table; None for the others."""
    s = config.rope_scaling
    if s is None or s.kind not in ("llama3", "factors"):
        return None
    return np.array(s.factors(config.rotary_dim, config.rope_base), np.float32)
