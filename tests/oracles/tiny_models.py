"""Random tiny models of transformers' classes saved as folders, with a byte-level tokenizer: independent inputs for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # large enough that greedy choices have a margin
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A random model in float32; norms and biases are random too, so that none can be left out unnoticed."""
    torch.manual_seed(seed)
    config_class, model_class = CLASSES[kind]
    model = model_class(config_class(**(SIZES | changes))).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.normal_(1, 0.2)
    return model


def save(model: Any, folder: Path, *, tokenizer: bool = False, **options: Any) -> Path:
    """`save_pretrained`, with a tokenizer.json if asked for."""
    for holder in (model.config, model.generation_config):  # LLaMA's defaults 1 and 2 are letters in our vocabulary
        holder.bos_token_id = holder.eos_token_id = None
    model.save_pretrained(folder, **options)
    if tokenizer:
        save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 256 bytes, 4 merges and 3 control tokens in Qwen2's form of tokenizer.json."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "a")]
    tokens = [*letters, *("".join(pair) for pair in merges)]
    built = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    built.add_special_tokens(list(SPECIAL))
    built.decoder = decoders.ByteLevel()
    description = json.loads(built.to_str())
    description["pre_tokenizer"] = qwen2_pre_tokenizer()
    description["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(description))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    )


def qwen2_pre_tokenizer() -> dict[str, Any]:
    """The pre-tokeniser of Qwen2's published tokenizer.json."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


def not_ascii(rows: int = 320) -> list[int]:
    """Ids of the tiny tokenizer that are no complete ASCII text: pieces of characters, control tokens, padding."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [at for at, letter in enumerate(letters) if not "!" <= letter <= "~"] + list(range(260, rows))


def greedy(model: Any, prompt: list[int], steps: int, banned: list[int]) -> tuple[list[int], float]:
    """(greedy ids without `banned`, smallest distance of the two best logits on the way)."""
    ids, margin = list(prompt), float("inf")
    with torch.no_grad():
        for _ in range(steps):
            logits = model(torch.tensor([ids])).logits[0, -1]
            logits[banned] = -torch.inf
            best = logits.topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
    return ids[len(prompt) :], margin
