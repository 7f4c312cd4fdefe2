"""Small SentencePiece vocabularies, trained by Hugging Face's library, as tokenizer.json and as a GGUF of a tiny network.

The forms are those of published files: LLaMA-2 and TinyLlama (normalisers Prepend and Replace), Mistral of 2024
(Metaspace), the first conversions (Metaspace that splits), and Yi (no space before a text).
"""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from kiloq.core.gguf_write import GGUFTensor, write_gguf

CORPUS = [
    "The quick brown foxes aren't jumping over 1234 lazy dogs; they'll  sleep.\n\n  Indented\tcode(x) += 12;\r\n",
    "敏捷的棕色狐狸跳过了懒狗。 Быстрая лиса прыгает. الثعلب البني ١٢٣ é Å naïve café",
    "aaaa aaaaaa!!!! ???  ½ ² 3.14     x = [1, 2, 3]  # the end of the line, the other end",
    "😀😀😀 👍🏽 the rest, the best, the test; quickest, laziest",
]
HOSTILE = ["</s>", "<s>", "<unk>", "<0x41>", "▁", "▁▁x", "\x00", "\ufffd", "𝔘", "ꙮ", "\u202e", "\r\n", "   ", "🏳️‍🌈"]
CONTROL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
FORMS = ("prepend", "replace", "first", "always", "never", "split")


def trained(size: int, form: str = "prepend", *, across_words: bool = False) -> Any:
    """A tokenizer.json document; tokens of several words are in it if `across_words`."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=not across_words)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=CONTROL + BYTES, show_progress=False)
    made.train_from_iterator(CORPUS * 2, trainer)
    if form in ("prepend", "replace"):
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")][form == "replace" :]
        made.normalizer = normalizers.Sequence(steps)
        made.pre_tokenizer = None
    else:
        scheme = "always" if form == "split" else form
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=form == "split")
    strip = [] if form in ("replace", "never") else [decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    document = json.loads(made.to_str())
    document["added_tokens"] = [row for row in document["added_tokens"] if row["content"] in CONTROL]
    return document


def texts(count: int) -> list[str]:
    """The corpus, the hostile texts alone, and mixtures of their characters."""
    chance = random.Random(3)
    atoms = [*"".join(CORPUS), *HOSTILE, " the", "quick", " ", "  "]
    mixed = ["".join(chance.choices(atoms, k=chance.randint(1, 60))) for _ in range(count)]
    return [*CORPUS, *HOSTILE, "", " ", " hi", "hi ", "<s> a</s>b ", *mixed]


def rows(document: Any) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types for GGUF: SentencePiece's own scores are minus the place of the merge."""
    vocab = document["model"]["vocab"]
    made = ["".join(pair) for pair in document["model"]["merges"]]
    place = {token: at for at, token in reversed(list(enumerate(made)))}
    tokens = sorted(vocab, key=vocab.__getitem__)
    types = [2 if t == "<unk>" else 3 if t in CONTROL else 6 if t in BYTES else 1 for t in tokens]
    scores = [0.0 if kind != 1 else -float(place.get(t, len(made))) for t, kind in zip(tokens, types, strict=True)]
    return tokens, scores, types


def save_gguf(path: Path, tokens: list[str], scores: list[float] | None, types: list[int], **extra: Any) -> Path:
    """A GGUF that llama.cpp loads: one layer of 32 channels. `extra` are entries of tokenizer.ggml."""
    size, width = len(tokens), 32
    chance = np.random.default_rng(1)
    shapes = {"token_embd": (size, width), "output_norm": (width,), "output": (size, width)}
    shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,), "blk.0.ffn_down": (width, 64)}
    shapes |= {"blk.0.ffn_gate": (64, width), "blk.0.ffn_up": (64, width)}
    values: dict[str, Any] = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 64,
        "llama.embedding_length": width, "llama.feed_forward_length": 64, "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 2, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": size,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32), "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    if scores is not None:
        values["tokenizer.ggml.scores"] = np.array(scores, np.float32)
    values |= {f"tokenizer.ggml.{key}": value for key, value in extra.items()}

    def tensor(name: str, shape: tuple[int, ...]) -> GGUFTensor:
        return GGUFTensor(f"{name}.weight", "F32", shape, lambda: chance.normal(0, 0.3, shape).astype(np.float32))

    write_gguf(path, values, [tensor(*item) for item in shapes.items()])
    return path


def with_tokens(document: Any, *texts: str) -> Any:
    """A copy with tokens that no merge makes."""
    changed = copy.deepcopy(document)
    vocab = changed["model"]["vocab"]
    for text in texts:
        vocab.setdefault(text, len(vocab))
    return changed
