"""The names of number formats, in one table: safetensors' code, numpy type, and the short name that people type.

bfloat16 and the 8-bit floats are numpy types of the `ml_dtypes` package; no torch.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

# Every fixed-size type of safetensors 0.8 that numpy can hold; its sub-byte types (F4, F6_*) are not for weights here.
SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    code: np.dtype(kind)
    for code, kind in {
        "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16,
        "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64,
        "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F32": np.float32, "F64": np.float64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    }.items()
}  # fmt: skip
CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}

# The three types that weights are stored in unquantised: name for people -> (safetensors code, config.json name).
WEIGHT_DTYPES = {"fp32": ("F32", "float32"), "bf16": ("BF16", "bfloat16"), "fp16": ("F16", "float16")}
WEIGHT_NAMES = {code: name for name, (code, _) in WEIGHT_DTYPES.items()}
