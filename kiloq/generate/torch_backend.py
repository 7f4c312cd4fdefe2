"""The engine's PyTorch backend: the reference network, one sequence at a time.

Rows are run one after another on purpose. Matrix products of different heights sum in different orders, so a batched
pass would let a request's last bits depend on its batch mates; the native engine batches without that price.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kiloq.generate.backend import PREFILL_CHUNK, Outcome, Row, check_process, drawn
from kiloq.model.cache import KVCache
from kiloq.model.flops import cache_bytes
from kiloq.model.network import Network

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class TorchBackend:
    """See `Backend`."""

    name = "torch"
    takes_guesses = False
    exact_cuts = False  # the same as with batches: so blocks are as long as chunks, and computed in one call
    block_tokens = PREFILL_CHUNK
    cache_limit_bytes = 1 << 40

    def __init__(self, network: Network, *, cache_dtype: torch.dtype | None = None) -> None:
        self._network = network.eval()
        weight = network.embed_tokens.weight
        self._torch_device = weight.device
        self._cache_dtype = cache_dtype or weight.dtype
        self._process = os.getpid()
        self.block_bytes = cache_bytes(network.config, self.block_tokens, DTYPES[self._cache_dtype])
        self.config = network.config
        self.dtype = DTYPES[weight.dtype]
        self.device = str(weight.device)

    def open(self, pages: Sequence[KVCache] = ()) -> KVCache:
        """A new sequence, empty or with the tokens of pages."""
        sequence = KVCache(self.config, 1, dtype=self._cache_dtype, device=self._torch_device)
        for page in pages:
            sequence.append(page)
        return sequence

    def page(self, sequence: KVCache, index: int) -> KVCache:
        """A copy of a block of a sequence."""
        return sequence.part(index * self.block_tokens, (index + 1) * self.block_tokens)

    def fork(self, sequence: KVCache) -> KVCache:
        """A copy of a sequence and its cache."""
        return sequence.fork()

    @torch.inference_mode()
    def step(self, rows: list[Row]) -> list[Outcome]:
        """Runs all rows."""
        check_process(self._process)
        outcomes = []
        for row in rows:
            hidden = self._network.hidden(self._tensor(row.ids), cache=row.sequence, alpha=[row.alpha])
            wanted = max(row.wanted, int(row.draw is not None))
            logits_NV = self._network.head(hidden[:, -wanted:])[0].cpu().numpy() if wanted else None
            outcomes.append(drawn(row, logits_NV))
        return outcomes

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits [T, V] of all positions in one uncached pass."""
        check_process(self._process)
        logits_TV: NDArray[np.float32] = self._network(self._tensor(ids))[0].cpu().numpy()
        return logits_TV

    @torch.inference_mode()
    def pooled(self, ids: list[int]) -> NDArray[np.float32]:
        """The mean [C] over all positions of the final norm's outputs."""
        check_process(self._process)
        mean_C: NDArray[np.float32] = self._network.hidden(self._tensor(ids))[0].double().mean(0).float().cpu().numpy()
        return mean_C

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self._torch_device)
