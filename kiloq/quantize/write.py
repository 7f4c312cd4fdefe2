"""The finished folder: packed integers of the layers, everything else as it was, configuration, report and manifest."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from kiloq.convert import hf
from kiloq.convert.gptq import CONFIG_FILE, CONFIG_KEY
from kiloq.convert.reshape import Reshaped
from kiloq.convert.source import ModelSource
from kiloq.convert.write import (
    INDENT,
    SHARD_BYTES,
    load_tokenizer,
    source_hashes,
    write_configs,
    write_weights,
)
from kiloq.core.dtypes import WEIGHT_DTYPES
from kiloq.core.manifest import atomic_folder, write_manifest
from kiloq.core.safe_json import write_json
from kiloq.core.safetensors import TensorSpec
from kiloq.quantize.layers import MATRICES
from kiloq.quantize.packing import quantization_config, quantize_config
from kiloq.quantize.report import report_page
from kiloq.quantize.run import Outcome
from kiloq.quantize.settings import Settings
from kiloq.quantize.work import Work


def write_quantised(
    source: ModelSource,
    out: Path,
    settings: Settings,
    outcome: Outcome,
    work: Work,
    *,
    dtype: str | None,
    inputs: dict[str, Path | str],
    figures: dict[str, Any],
) -> int:
    """Write the folder complete or not at all; returns the bytes of its weights. dtype: of what stays unquantised."""
    config = hf.expressible(source.config, "native")
    tensors = Reshaped(source, config, dtype)
    with atomic_folder(out) as staging:
        specs = [spec for name in tensors.names() for spec in _specs(tensors, name, work)]
        size = write_weights(staging, specs, SHARD_BYTES, None)
        tokenizer = load_tokenizer(source)
        if tokenizer is not None:
            tokenizer.save(staging, max_length=config.max_length)
        plain = dtype or tensors.dtype_of("norm.weight")
        more = {CONFIG_KEY: quantization_config(settings)}
        write_configs(staging, source, tokenizer, config, "native", plain, more)
        write_json(staging / CONFIG_FILE, quantize_config(settings), INDENT)
        write_json(staging / "quantisation.json", figures, INDENT)
        (staging / "report.html").write_text(report_page(out.name, figures), encoding="utf-8")
        write_manifest(
            staging,
            "quantised model",
            inputs={**source_hashes(source), **inputs},
            config=figures["settings"],
            counts={"parameters": source.parameters(), "layers": source.config.num_layers},
            seconds=outcome.seconds,
        )
    return size


def _specs(tensors: Reshaped, name: str, work: Work) -> list[TensorSpec]:
    """The tensor as it was, or the four that stand for it."""
    parts = name.split(".")
    if parts[0] == "layers" and parts[-1] == "weight" and ".".join(parts[2:-1]) in MATRICES:
        file, module = work.tensors(int(parts[1])), name.removesuffix(".weight")
        return [
            TensorSpec(hf.stored_name(stored), *file.info(stored), partial(file.array, stored))
            for stored in file.names()
            if stored.rpartition(".")[0] == module
        ]
    code, shape = WEIGHT_DTYPES[tensors.dtype_of(name)][0], tensors.shape(name)
    return [TensorSpec(hf.stored_name(name), code, shape, partial(tensors.tensor, name))]
