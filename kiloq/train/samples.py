"""Texts that a model in training continues: what a loss of 3.2 reads like."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kiloq.model.network import Network
from kiloq.tokenize.tokenizer import Tokenizer

TOKENS = 40  # of each continuation. Ours


@torch.no_grad()
def continued(network: Network, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """Each prompt with its likeliest continuation; the network is left in training mode."""
    device = network.embed_tokens.weight.device
    found = []
    network.eval()
    for prompt in prompts:
        ids = tokenizer.encode(prompt) or [tokenizer.eos_ids[0]]
        for _ in range(TOKENS):
            logits_V = network(torch.tensor([ids], device=device), last_only=True)[0, 0]
            ids.append(int(logits_V[: tokenizer.vocab_size].argmax()))
            if ids[-1] in tokenizer.eos_ids:
                break
        found.append(tokenizer.decode(ids, errors="replace"))
    network.train()
    return found
