"""The model card (README.md) of an exported folder: what it is, where it comes from, and what it cannot say.

The front matter follows Hugging Face's model card format (huggingface_hub documentation, "Model Cards").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kiloq.convert.folder import inside
from kiloq.convert.source import ModelSource
from kiloq.core.files import regular_size, shown
from kiloq.model.config import ModelConfig

MAX_FRONT_BYTES = 4096  # of a card that is looked at for `license:`
CLASSES = {"qwen1": "QWenLMHeadModel", "qwen2": "Qwen2 layout", "native": "native layout"}


def model_card(
    name: str,
    source: ModelSource,
    config: ModelConfig,
    parameters: int,
    layout: str,
    dtype: str,
    inputs: Mapping[str, Path | str],
    notes: list[str],
) -> str:
    """Markdown text. `inputs`: source file -> sha256."""
    origin = f"{source.path.name} ({source.kind})"
    stored = ", ".join(f"{count} x {kind}" for kind, count in source.stored_types().items())
    licence = licence_of(source)
    hashes = "\n".join(f"| `{file}` | `{digest}` |" for file, digest in inputs.items())
    limits = "\n".join(f"- {note}." for note in notes) or "- Nothing that this layout could not express."
    front = ["---", f"license: {licence}"] if licence else ["---"]
    return "\n".join([
        *front, "library_name: transformers", "pipeline_tag: text-generation", "---", "",
        f"# {printable(name)}", "",
        f"{parameters:,} parameters, {dtype}, {CLASSES[layout]}, written by kiloq from {printable(origin)}.", "",
        f"- layers {config.num_layers}, width {config.hidden_size}, heads {config.num_heads} "
        f"(key/value {config.num_kv_heads}) of {config.head_dim}, feed-forward {config.ffn_size}, "
        f"vocabulary rows {config.vocab_size}",
        f"- trained length {config.train_length}, advertised length {config.max_length} tokens",
        f"- stored in the source as {stored}",
        f"- licence: {licence or 'not named by the source; that of the original model holds'}", "",
        "## Limits", "", limits, "",
        "## Source files", "", "| file | sha256 |", "|---|---|", hashes, "",
    ])  # fmt: skip


def licence_of(source: ModelSource) -> str | None:
    """The licence that the source names (GGUF metadata, config.json, or its card's front matter), if it looks like one."""
    value = source.metadata.get("general.license") or source.metadata.get("license")
    card = source.path / "README.md"
    if value is None and card.is_file():
        front = _start(inside(source.path, card.name)).decode("utf-8", "replace")
        found = re.match(r"---\n(?:.*\n)*?license: *(\S+)", front)
        value = found and found[1]
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9.+-]{1,40}", value) else None


def _start(path: Path) -> bytes:
    regular_size(path)
    with path.open("rb") as file:
        return file.read(MAX_FRONT_BYTES)


def printable(text: str) -> str:
    """`text` without control characters and markup, for a heading."""
    return re.sub(r"[`<>|\[\]]", " ", shown(text, 200).strip("'"))
