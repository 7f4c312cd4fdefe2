"""Steps that are not taken, and when a run goes back: gradients that are not finite, and spikes.

A step is judged by numbers that are the same in all processes, so they agree without asking. A spike is a loss or a
norm further above the mean of the last steps than a multiple of their standard deviation (OLMo 2, Walsh et al. 2024;
its training code has 6 deviations and 128 steps). After too many bad steps in a row the run goes back to its newest
good checkpoint and from there past the data of those steps, as Chowdhery et al. 2022 (PaLM, section 5.1) did by hand.
"""

from __future__ import annotations

import math
import statistics

from kiloq.core.errors import KiloqError
from kiloq.train.checkpoint import Progress

WINDOW = 128  # steps; OLMo 2
LEAST = 16  # good steps before anything is called a spike. Ours
MOST_RETURNS = 3  # ours: a run that goes back more often needs a person


def bad(loss: float, norm: float, progress: Progress, spikes: float | None) -> str | None:
    """Why a step is not to be taken; None where it is."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return "its gradient is not finite"
    if spikes is None or len(progress.recent) < LEAST:
        return None
    for name, value, seen in zip(("loss", "norm"), (loss, norm), zip(*progress.recent, strict=True), strict=True):
        limit = statistics.fmean(seen) + spikes * statistics.stdev(seen)
        if value > limit:
            return (
                f"its {name}, {value:.4g}, is above {limit:.4g}, {spikes:g} deviations over the last {len(seen)} steps"
            )
    return None


def book(
    progress: Progress, batch: int, loss: float, norm: float, tokens: int, taken: bool, spikes: float | None
) -> None:
    """Count a step."""
    progress.step += 1
    if not taken:
        progress.skipped.append(batch)
        progress.bad_in_a_row += 1
        return
    progress.updates += 1
    progress.tokens += tokens
    progress.bad_in_a_row = 0
    if spikes is not None:
        progress.recent = [*progress.recent[1 - WINDOW :], (loss, norm)]


def went_back(progress: Progress, earlier: Progress) -> Progress:
    """Where a run stands that goes back from `progress` to the checkpoint of `earlier`, with its data behind it.

    Raises KiloqError if it has gone back too often.
    """
    if progress.returns >= MOST_RETURNS:
        raise KiloqError(
            f"step {progress.step:,}: {progress.bad_in_a_row} steps in a row could not be taken, and the run has gone back "
            f"{progress.returns} times: give a lower peak_rate, or look at the documents that metrics.jsonl names"
        )
    earlier.passed = progress.step + progress.passed - earlier.step
    earlier.skipped = progress.skipped
    earlier.returns = progress.returns + 1
    earlier.bad_in_a_row = 0
    return earlier
