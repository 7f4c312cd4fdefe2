"""Perplexity of the default model quantised in several ways, on WikiText-2.

    python benchmarks/quantisation_quality.py [NAME ...]

The file of the default model is itself quantised (Q4_1); decoded to float32 it is the baseline. Calibration text is
WikiText-2's validation part, perplexity is taken on evenly spread windows of its test part: figures for comparing
methods, not to compare with published ones.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

import record
from rounds import text_of

from kiloq.convert.assets import resolve
from kiloq.convert.source import open_model
from kiloq.convert.write import load_tokenizer
from kiloq.quantize.calibration import spread, windows
from kiloq.quantize.run import Samples, quantise_model
from kiloq.quantize.settings import Settings
from kiloq.quantize.work import Work

LENGTH, CALIBRATION_SAMPLES, EVALUATION_SAMPLES = 512, 64, 16
VARIANTS = {
    "int8 rtn": Settings(method="rtn", bits=8),
    "int8 rtn, asymmetric": Settings(method="rtn", bits=8, symmetric=False),
    "int8 rtn, asymmetric, groups of 32": Settings(method="rtn", bits=8, group=32, symmetric=False),
    "int8 gptq": Settings(bits=8),
    "int4 rtn": Settings(method="rtn"),
    "int4 rtn, asymmetric": Settings(method="rtn", symmetric=False),
    "int4 gptq": Settings(),
    "int4 gptq, act-order": Settings(desc_act=True),
    "int4 gptq, asymmetric": Settings(symmetric=False),
    "int4 gptq, asymmetric, act-order": Settings(symmetric=False, desc_act=True),
    "int4 gptq, asymmetric, act-order, search": Settings(symmetric=False, desc_act=True, search=True),
    "int4 gptq, asymmetric, groups of 32": Settings(symmetric=False, group=32),
}


def main(names: list[str]) -> None:
    """Measures the variants called `names`, or all."""
    source = open_model(resolve("smollm2"))
    tokenizer = load_tokenizer(source)
    assert tokenizer is not None
    calibration = spread(windows(tokenizer, text_of("valid"), LENGTH), CALIBRATION_SAMPLES)
    evaluation = spread(windows(tokenizer, text_of("test"), LENGTH), EVALUATION_SAMPLES)
    figures = {}
    for name in names or VARIANTS:
        settings = VARIANTS[name]
        samples = Samples(calibration if settings.method == "gptq" else [], evaluation)
        with tempfile.TemporaryDirectory() as folder:
            outcome = quantise_model(source, settings, samples, Work(Path(folder) / "out", {}))
        assert outcome.before is not None
        assert outcome.after is not None
        rise = 100 * (outcome.after / outcome.before - 1)
        figures[name] = {
            "settings": dataclasses.asdict(settings),
            "perplexity_before": outcome.before,
            "perplexity": outcome.after,
            "rise_percent": rise,
            "seconds": outcome.seconds,
        }
        print(
            f"{name:45} {outcome.before:8.3f} {outcome.after:8.3f}  {rise:+7.2f} %  {outcome.seconds:6.0f} s",
            flush=True,
        )
    tokens = {"calibration": sum(map(len, calibration)), "evaluation": sum(map(len, evaluation))}
    print(record.write("quantisation-quality", {"model": "smollm2", "tokens": tokens, "variants": figures}))


if __name__ == "__main__":
    main(sys.argv[1:])
