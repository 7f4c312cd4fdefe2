"""A small Qwen-shaped model trained here, for questions that random weights cannot answer: on WikiText-2, byte by byte.

Made when first asked for, in about two minutes; the same every time. It is no model to talk to: what matters is that
its weights are learned and that nothing but this repository made them.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from rounds import text_of

from kiloq.convert import hf
from kiloq.core.safetensors import write_safetensors
from kiloq.model.config import ModelConfig
from kiloq.model.init import init_weights
from kiloq.model.network import Network, next_token_loss

CONFIG = ModelConfig(vocab_size=256, hidden_size=256, num_layers=4, num_heads=4, ffn_size=512, train_length=256)
STEPS, BATCH, PEAK_RATE, WARM_UP = 300, 8, 2e-3, 30  # ours: two minutes on two cores
SEED = 1


def trained_folder(folder: Path) -> Path:
    """The model's folder, in Qwen2's layout without a tokenizer: ids are bytes."""
    path = folder / "trained-here"
    if (path / "config.json").exists():
        return path
    print(f"training {path}", file=sys.stderr)
    network = train(np.frombuffer(text_of("valid").encode(), np.uint8))
    path.mkdir(parents=True, exist_ok=True)
    state = {hf.stored_name(name): value.detach().numpy() for name, value in network.state_dict().items()}
    write_safetensors(path / "model.safetensors", state)
    (path / "config.json").write_text(json.dumps(hf.write_config(CONFIG, "fp32"), indent=1) + "\n")
    return path


def train(data: np.ndarray) -> Network:
    """AdamW with warm-up and a cosine, on random windows."""
    random = np.random.default_rng(SEED)
    network = Network(CONFIG)
    init_weights(network, SEED)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(STEPS):
        rate = PEAK_RATE * min((step + 1) / WARM_UP, 0.55 + 0.45 * math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = random.integers(0, len(data) - CONFIG.train_length, BATCH)
        ids_BT = torch.from_numpy(np.stack([data[s : s + CONFIG.train_length] for s in starts]).astype(np.int64))
        loss = next_token_loss(network(ids_BT), ids_BT)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f} nats a byte", file=sys.stderr)
    return network
