"""Grids whose peaks are exact: what they promise of every weight, and when the command uses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles.tiny_models import save, tiny

from kiloq.cli import main
from kiloq.core.errors import UsageError
from kiloq.quantize.rtn import fit_grid, round_to_nearest
from kiloq.quantize.settings import Settings

FLOATS = st.floats(-100, 100, width=32, allow_subnormal=False)


@given(arrays(np.float32, (3, 32), elements=FLOATS), st.booleans(), st.sampled_from([4, 8]))
def test_the_largest_weight_is_a_code_and_none_lies_beyond(weights: np.ndarray, symmetric: bool, bits: int) -> None:
    """Every weight is within half a step, the largest within float32's rounding."""
    settings = Settings(bits=bits, symmetric=symmetric, exact_peaks=True, scale_dtype="fp32")
    w_RK = torch.from_numpy(weights)
    grid = fit_grid(w_RK, settings)
    error_RK = (grid.values(grid.codes(w_RK)) - w_RK).abs()
    assert bool((error_RK <= grid.scale_R1 * 0.50001).all())
    peak_R = w_RK.abs().argmax(1)
    largest_R, lost_R = w_RK.abs().amax(1), error_RK.gather(1, peak_R[:, None])[:, 0]
    assert bool((lost_R <= 1e-5 * largest_R).all())


def test_the_references_grid_cuts_the_largest_weight_by_half_a_step() -> None:
    """What exact peaks are for: +m is code 127.5 of 255 there."""
    weights = torch.linspace(-1.0, 1.0, 32)[None]
    lost = {}
    for exact in (False, True):
        found = round_to_nearest(
            weights, Settings(method="rtn", bits=8, group=32, exact_peaks=exact, scale_dtype="fp32")
        )
        lost[exact] = abs(1.0 - float(found.decode()[0, -1]))
    assert lost[False] == pytest.approx(0.5 * 2 / 255, rel=1e-3)
    assert lost[True] < 1e-6


def test_exact_peaks_and_a_search_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        Settings(exact_peaks=True, search=True)


@pytest.mark.parametrize(
    ("options", "exact"),
    [(["--bits", "8"], True), (["--bits", "4"], False), (["--bits", "8", "--search"], False),
     (["--bits", "8", "--reference-peaks"], False), (["--bits", "4", "--exact-peaks"], True)],
)  # fmt: skip
def test_eight_bits_keep_their_peaks_unless_told_otherwise(tmp_path: Path, options: list[str], exact: bool) -> None:
    folder = save(tiny("qwen2"), tmp_path / "model", tokenizer=True)
    out = tmp_path / "out"
    assert main(["quantize", str(folder), "--method", "rtn", "--group", "32", *options, "--out", str(out)]) == 0
    assert json.loads((out / "quantisation.json").read_text())["settings"]["exact_peaks"] is exact
