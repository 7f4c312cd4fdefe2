"""A model in the shape that another layout needs, without changing what it computes.

Grouped key/value heads are repeated for every query head that they serve, a tied head is written out, biases that a
layout demands are zeros. One tensor exists at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kiloq.convert.source import ModelSource
from kiloq.core.dtypes import SAFETENSORS_DTYPES, WEIGHT_DTYPES
from kiloq.core.errors import FormatError
from kiloq.model.config import ModelConfig
from kiloq.model.shapes import tensor_shapes


class Reshaped:
    """Tensors of `source` in the shapes of `config` and in type `dtype` (None: each as it is stored)."""

    def __init__(self, source: ModelSource, config: ModelConfig, dtype: str | None = None) -> None:
        self.source, self.config, self.dtype = source, config, dtype
        self._shapes = tensor_shapes(config)
        self._present = set(source.names())

    def names(self) -> list[str]:
        """Canonical names in forward order."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape after reshaping."""
        return self._shapes[name]

    def dtype_of(self, name: str) -> str:
        """Type after conversion: "fp32", "bf16" or "fp16"."""
        if self.dtype:
            return self.dtype
        origin = self._origin(name)
        return self.source.dtype_of(origin) if origin else self.source.dtype

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """Values in the new shape and type. Raises FormatError where a value does not fit fp16."""
        shape, dtype = self._shapes[name], SAFETENSORS_DTYPES[WEIGHT_DTYPES[self.dtype_of(name)][0]]
        origin = self._origin(name)
        if origin is None:
            return np.zeros(shape, dtype)
        values = self.source.tensor(origin)
        if values.shape != shape:
            values = self._repeat_heads(values, shape)
        return self._converted(name, values, dtype)

    def _origin(self, name: str) -> str | None:
        """The source tensor that gives `name`; None: zeros."""
        if name in self._present:
            return name
        if name == "lm_head.weight":
            return "embed_tokens.weight"
        assert name.endswith(".bias"), name
        return None

    def _repeat_heads(self, values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """[kv heads x size, ...] -> [heads x size, ...]: head h is served by key/value head h // group."""
        heads = values.reshape(-1, self.config.head_dim, *values.shape[1:])
        return heads.repeat(shape[0] // values.shape[0], axis=0).reshape(shape)

    def _converted(self, name: str, values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        if values.dtype == dtype:
            return values
        with np.errstate(over="ignore", invalid="ignore"):
            converted = values.astype(dtype)
        if dtype == np.float16 and bool((np.isinf(converted) & ~np.isinf(values)).any()):
            raise FormatError(
                f"{self.source.path}: {name} holds values above 65,504, which fp16 cannot: use bf16 or fp32"
            )
        return converted
