"""Perplexity of a model quantised in several ways, on WikiText-2: the default model's, and that of one trained here.

    python benchmarks/quantisation_quality.py                             both, about twenty minutes
    python benchmarks/quantisation_quality.py --model trained "int4 rtn"  some of it

The file of the default model is itself quantised (Q4_1); decoded to float32 it is the baseline. The other is the small
model of `trained.py`, for which a byte is a token. Calibration text is WikiText-2's validation part, perplexity is taken
on evenly spread windows of its test part: figures for comparing methods, not to compare with published ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import models
import record
from rounds import text_of
from trained import CONFIG, trained_folder

from kiloq.convert.assets import resolve
from kiloq.convert.source import ModelSource, open_model
from kiloq.convert.write import load_tokenizer
from kiloq.quantize.calibration import spread, windows
from kiloq.quantize.run import Samples, quantise_model
from kiloq.quantize.settings import Settings
from kiloq.quantize.work import Work

LENGTH, CALIBRATION_SAMPLES, EVALUATION_SAMPLES = 512, 64, 32
VARIANTS = {
    "int8 rtn": Settings(method="rtn", bits=8, exact_peaks=True),
    "int8 rtn, groups of 32": Settings(method="rtn", bits=8, group=32, exact_peaks=True),
    "int8 rtn, asymmetric": Settings(method="rtn", bits=8, symmetric=False, exact_peaks=True),
    "int8 rtn, reference peaks": Settings(method="rtn", bits=8),
    "int8 gptq": Settings(bits=8, exact_peaks=True),
    "int8 gptq, reference peaks": Settings(bits=8),
    "int4 rtn": Settings(method="rtn"),
    "int4 rtn, asymmetric": Settings(method="rtn", symmetric=False),
    "int4 gptq": Settings(),
    "int4 gptq, exact peaks": Settings(exact_peaks=True),
    "int4 gptq, act-order": Settings(desc_act=True),
    "int4 gptq, asymmetric": Settings(symmetric=False),
    "int4 gptq, asymmetric, act-order": Settings(symmetric=False, desc_act=True),
    "int4 gptq, asymmetric, act-order, search": Settings(symmetric=False, desc_act=True, search=True),
    "int4 gptq, asymmetric, groups of 32": Settings(symmetric=False, group=32),
}


MOST_RISE_PERCENT = {
    "int8 rtn": 0.1,
    "int8 rtn, groups of 32": 0.1,
    "int8 gptq": 0.1,
    "int4 gptq": 3.0,
    "int4 gptq, act-order": 3.0,
}
MOST_SHARE = 0.7  # of the rise by rounding to nearest, for GPTQ with the same integers
BETTER = {"int4 gptq": "int4 rtn", "int4 gptq, asymmetric": "int4 rtn, asymmetric"}


def opened(model: str, folder: Path) -> tuple[ModelSource, Samples]:
    """A model with texts to calibrate on and to measure with."""
    if model == "trained":
        source = open_model(trained_folder(folder))
        cut = {part: _bytes(text_of(part)) for part in ("valid", "test")}
    else:
        source = open_model(resolve("smollm2"))
        tokenizer = load_tokenizer(source)
        assert tokenizer is not None
        cut = {part: windows(tokenizer, text_of(part), LENGTH) for part in ("valid", "test")}
    return source, Samples(spread(cut["valid"], CALIBRATION_SAMPLES), spread(cut["test"], EVALUATION_SAMPLES))


def _bytes(text: str) -> list[list[int]]:
    data, length = text.encode(), CONFIG.train_length
    return [list(data[start : start + length]) for start in range(0, len(data) - length, length)]


def measured(source: ModelSource, samples: Samples, settings: Settings) -> dict[str, Any]:
    """One variant."""
    if settings.method == "rtn":
        samples = dataclasses.replace(samples, calibration=[])
    with tempfile.TemporaryDirectory() as folder:
        outcome = quantise_model(source, settings, samples, Work(Path(folder) / "out", {}))
    assert outcome.before is not None
    assert outcome.after is not None
    return {
        "settings": dataclasses.asdict(settings),
        "perplexity_before": outcome.before,
        "perplexity": outcome.after,
        "rise_percent": 100 * (outcome.after / outcome.before - 1),
        "seconds": outcome.seconds,
    }


def misses(name: str, variants: dict[str, dict[str, Any]]) -> str:
    """What a variant, of those so far, should have kept and did not; empty: nothing."""
    rise = variants[name]["rise_percent"]
    found = [f"  above {MOST_RISE_PERCENT[name]} %"] if rise > MOST_RISE_PERCENT.get(name, rise) else []
    plain = variants.get(BETTER.get(name, ""))
    if plain is not None and rise > MOST_SHARE * plain["rise_percent"]:
        found.append(f"  above {MOST_SHARE} times the rise of {BETTER[name]}")
    return "".join(found)


def main() -> None:
    """Measures the variants that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"one of: {'; '.join(VARIANTS)}")
    parser.add_argument("--model", choices=("smollm2", "trained"), action="append", help="both, unless named")
    parser.add_argument("--cache", type=Path, default=models.default_folder(), help="keeps the trained model")
    parser.add_argument("--out", type=Path, help="a JSON file instead of one in benchmarks/results")
    options = parser.parse_args()
    if unknown := set(options.variants) - set(VARIANTS):
        parser.error(f"there is no variant {unknown.pop()!r}; there are: {'; '.join(VARIANTS)}")
    figures: dict[str, Any] = {}
    for model in options.model or ("smollm2", "trained"):
        source, samples = opened(model, options.cache)
        variants: dict[str, dict[str, Any]] = {}
        for name in options.variants or VARIANTS:
            variants[name] = one = measured(source, samples, VARIANTS[name])
            print(f"{model:8} {name:45} {one['perplexity_before']:8.3f} {one['perplexity']:8.3f}  "
                  f"{one['rise_percent']:+7.2f} %  {one['seconds']:6.0f} s{misses(name, variants)}", flush=True)  # fmt: skip
        tokens = {kind: sum(map(len, getattr(samples, kind))) for kind in ("calibration", "evaluation")}
        figures[model] = {"tokens": tokens, "variants": variants}
    print(record.write("quantisation-quality", figures, options.out))


if __name__ == "__main__":
    main()
