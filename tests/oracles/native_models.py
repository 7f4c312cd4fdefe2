"""Native decoders straight from a configuration and weights in memory, and their twins in PyTorch.

The twin of a quantised decoder computes with the weights as the engine holds them (`Matrix.row`), and rounds what goes
into each matrix as the engine does, so that only the order of sums is left between the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kiloq import native
from kiloq.generate import native_load
from kiloq.generate.native_backend import NativeBackend
from kiloq.model.cache import KVCache
from kiloq.model.config import ModelConfig
from kiloq.model.network import Network
from kiloq.model.ntk import ntk_alpha
from kiloq.model.shapes import tensor_shapes

CACHE_BYTES = 1 << 30
ACTIVATION_GROUP = 32  # activations that share a scale
OUTLIER = 3.5  # times the row's root mean square: larger activations are multiplied as they are
OUTLIER_OF_PRODUCTS = 7.0  # the same of what goes into down_proj

State = dict[str, np.ndarray]


class MemorySource:
    """What `native_load` uses of a ModelSource, over arrays."""

    quantised = False

    def __init__(self, config: ModelConfig, state: State) -> None:
        self.config = config
        self.warnings: list[str] = []
        self.broken: list[str] = []
        self._state = state

    def names(self) -> list[str]:
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._state[name].shape

    def dtype_of(self, name: str) -> str:
        return {"float32": "fp32", "float16": "fp16"}.get(self._state[name].dtype.name, "bf16")

    def stored_in_floats(self, name: str) -> bool:
        return True

    def tensor(self, name: str) -> np.ndarray:
        return self._state[name]

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        return self._state[name][begin:end]

    def integers(self, name: str, rows: tuple[int, int] | None = None) -> None:
        return None

    def block_type(self, name: str) -> None:
        return None

    def release_pages(self) -> None:
        """Nothing is mapped."""

    def warn_of_broken(self, names: list[str]) -> None:
        self.broken += names


def random_source(config: ModelConfig, seed: int = 0, size: float = 0.2) -> MemorySource:
    """Weights large enough that every part matters; norms around 1, biases are there."""
    random = np.random.default_rng(seed)
    return MemorySource(
        config,
        {
            name: (float("norm" in name) + size * random.standard_normal(shape)).astype(np.float32)
            for name, shape in tensor_shapes(config).items()
        },
    )


def some_ids(config: ModelConfig, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, count).tolist()


def native_backend(
    source: Any, weights: str = "fp32", kv: str = "fp32", *, threads: int = 2, cache_bytes: int = CACHE_BYTES
) -> NativeBackend:
    """The engine over a source's weights, with more threads than there are cores if asked to."""
    decoder = native_load.decoder(
        native.engine(), source, native_load.slots(source, weights), kv=kv, threads=threads, cache_bytes=cache_bytes,
        tell=lambda share: None,
    )  # fmt: skip
    return NativeBackend(decoder, source.config, dtype=weights, kv=kv, threads=threads)


def held_matrix(source: Any, name: str, weights: str) -> np.ndarray:
    """A matrix as numbers, as the engine holds it: in float32, columns in the file's order."""
    slot = native_load.slots(source, weights)[name]
    matrix = native_load.Packer(native.engine(), source, {name: slot}, 1).matrix(slot)
    rows = np.array([matrix.row(row) for row in range(slot.rows)], np.float32)
    if slot.order is not None:
        rows[:, slot.order] = rows.copy()
    return rows


class Twin:
    """PyTorch with the engine's weights, the engine's rounding of activations, and of the cache."""

    def __init__(self, source: Any, weights: str = "fp32", kv: str = "fp32") -> None:
        self.config, self.kv = source.config, kv
        plan = native_load.slots(source, weights)
        state = {name: held_matrix(source, name, weights) if name in plan else source.tensor(name).astype(np.float32)
                 for name in source.names()}  # fmt: skip
        state.setdefault("lm_head.weight", state["embed_tokens.weight"])
        self.network = Network(source.config.replace(tied_embeddings=False)).eval()
        self.network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
        for name, module in self.network.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                slot = plan[f"{name}.weight"]
                module.register_forward_pre_hook(lambda _, x, s=slot: rounded_activations(x[0], s))
        top = plan.get("lm_head.weight", plan["embed_tokens.weight"])
        self.network.norm.register_forward_hook(lambda _, x, out: rounded_activations(out, top))

    @torch.inference_mode()
    def logits(self, ids: list[int], alpha: float | None = None) -> np.ndarray:
        """Logits [T, V] of one pass; `alpha` instead of the length's own stretch."""
        config = self.config
        if alpha is None:
            alpha = ntk_alpha(len(ids), config.train_length) if config.dynamic_ntk else 1.0
        cache = RoundedCache(config, self.kv)
        return self.network(torch.tensor([ids]), cache=cache, alpha=[alpha])[0].numpy()


def rounded_activations(x: torch.Tensor, slot: native_load.Slot) -> torch.Tensor:
    """What a matrix of this form multiplies: bfloat16 for bf16; 8 bits for integers, outliers as they are."""
    if slot.format == "fp32":
        return x
    if slot.format == "bf16":
        return x.bfloat16().float()
    order = torch.arange(slot.columns) if slot.order is None else torch.from_numpy(slot.order).long()
    padded = torch.nn.functional.pad(x[..., order], (0, -slot.columns % ACTIVATION_GROUP))
    outlier = OUTLIER_OF_PRODUCTS if slot.name.endswith("down_proj.weight") else OUTLIER
    outliers = torch.where(padded.abs() > outlier * padded.square().mean(-1, keepdim=True).sqrt(), padded, 0.0)
    rounded = outliers + _rounded((padded - outliers).unflatten(-1, (-1, ACTIVATION_GROUP))).flatten(-2)
    back = torch.empty_like(x)
    back[..., order] = rounded[..., : slot.columns]
    return back


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Each vector of the last dimension in 8 bits around zero."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, (x / scale).round() * scale, 0.0)


class RoundedCache(KVCache):
    """Keys and values of each token and head in the engine's precision; int8: in 8 bits around zero."""

    def __init__(self, config: ModelConfig, kv: str) -> None:
        super().__init__(config, 1, dtype=torch.bfloat16 if kv == "bf16" else torch.float32, device="cpu")
        self._rounds = kv == "int8"

    def store(self, layer: int, keys_BTGD: torch.Tensor, values_BTGD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self._rounds:
            keys_BTGD, values_BTGD = _rounded(keys_BTGD), _rounded(values_BTGD)
        return super().store(layer, keys_BTGD, values_BTGD)


def open_many(backend: NativeBackend, count: int) -> list[Any]:
    return [backend.open() for _ in range(count)]


def run(backend: NativeBackend, *rows: tuple[Any, list[int]], alpha: float | list[float] = 1.0) -> list[np.ndarray]:
    """One call for rows of (sequence, new ids): the logits [T, V] of all new tokens of each."""
    alphas = alpha if isinstance(alpha, list) else [alpha] * len(rows)
    given = [(sequence, ids, a, len(ids), None) for (sequence, ids), a in zip(rows, alphas, strict=True)]
    logits_NV, _ = backend._run(given)
    return np.split(logits_NV, np.cumsum([len(ids) for _, ids in rows])[:-1])
