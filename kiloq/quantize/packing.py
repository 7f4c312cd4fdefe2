"""Quantised matrices as a folder's tensors and configuration, in AutoGPTQ's layout.

`quantize_config.json` has the keys that AutoGPTQ's readers and Qwen's released Int4 models have; `quantization_config`
in config.json is the same in the form that transformers, vLLM and others read. The packing itself is in
`kiloq.convert.gptq`, beside its inverse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kiloq.convert.gptq import pack_codes, pack_zeros
from kiloq.convert.integers import Integers
from kiloq.core.errors import UsageError
from kiloq.quantize.settings import Settings

PACKED = 32  # rows and columns that readers take at a time


def packed(module: str, found: Integers) -> dict[str, npt.NDArray[Any]]:
    """The four tensors of a matrix called `module`: qweight, qzeros, scales, g_idx. g_idx is always written."""
    middle = np.full(found.scale.shape, 1 << (found.bits - 1), np.uint8)
    zero = middle if found.zero is None else found.zero
    columns = found.codes.shape[1]
    g_idx = np.arange(columns, dtype=np.int32) // found.group if found.g_idx is None else found.g_idx
    return {
        f"{module}.qweight": pack_codes(found.codes, found.bits),
        f"{module}.qzeros": pack_zeros(np.ascontiguousarray(zero.T), found.bits),
        f"{module}.scales": np.ascontiguousarray(found.scale.T),
        f"{module}.g_idx": g_idx,
    }


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Whether a matrix can be packed: readers want whole 32-bit words in both directions, AutoGPTQ's 32 at a time.

    The last group of a row may have fewer columns, as in AutoGPTQ.
    """
    if shape[0] % PACKED or shape[1] % PACKED:
        raise UsageError(
            f"{name} has {shape[0]} x {shape[1]} weights: GPTQ's layout needs multiples of {PACKED} in both directions, "
            "so this model can only be converted (kiloq convert --to gguf --dtype q8_0)"
        )


def quantize_config(settings: Settings) -> dict[str, Any]:
    """The object in quantize_config.json."""
    s = settings
    return {
        "bits": s.bits,
        "group_size": s.group,
        "damp_percent": s.damping,
        "desc_act": s.desc_act,
        "static_groups": s.static_groups,
        "sym": s.symmetric,
        "true_sequential": s.true_sequential,
        "model_name_or_path": None,
        "model_file_base_name": None,
        "is_marlin_format": False,
        "quant_method": "gptq",
    }


def quantization_config(settings: Settings) -> dict[str, Any]:
    """The object under `quantization_config` in config.json."""
    dropped = ("model_name_or_path", "model_file_base_name", "is_marlin_format")
    kept = {key: value for key, value in quantize_config(settings).items() if key not in dropped}
    return {**kept, "checkpoint_format": "gptq", "lm_head": False, "modules_in_block_to_quantize": None}
