"""The search itself: sample mixtures, train a proxy on each, fit the laws, propose a mixture, and try it.

Proxies are trained by `kiloq train`, each in a process of one thread, so any number of them side by side gives the same
figures. The mixture that the corpus has by itself is trained with several seeds, which shows what chance does, and so is
the proposal; some mixtures are kept from the fit, which shows whether the laws foresee what they have not seen. What is
finished lies in the working folder, and a search that was killed goes on there.
Sources: Liu et al. 2024 (RegMix); Ye et al. 2024 (data mixing laws).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np

from kiloq.core.errors import UsageError
from kiloq.prepare.mix_search.law import Floats, Law, fit, rank_correlation
from kiloq.prepare.mix_search.mixtures import CANDIDATES, CHOSEN, sample
from kiloq.prepare.mix_search.proxies import Proxies

SEEDS = 3  # of the corpus' own mixture and of the proposal: what chance does is seen from these. Ours
SURE = 2.92  # standard errors that the proposal must be better by: Student's t of SEEDS - 1, one side, 5 %

Progress = Callable[[str, int, int], None]  # (what is done, how many of it, of how many)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is looked for, and by how much work."""

    natural: dict[str, float]  # source -> its share of the corpus' tokens
    limits: dict[str, float]  # source -> the largest share that it can have
    targets: dict[str, float]  # source whose held-out text is to be known well -> its weight; empty: all alike
    learned: int = 24  # mixtures that laws are fitted to
    held_out: int = 8  # mixtures that they are tried on
    seed: int = 0

    def mixtures(self) -> list[dict[str, float]]:
        """Those to train on, the held-out ones last."""
        found = sample(self._row(self.natural), self._row(self.limits), self.learned + self.held_out, self.seed, 0)
        return [self._named(row) for row in found]

    def candidates(self) -> Floats:
        """[N, sources] those among which the best are looked for."""
        return sample(self._row(self.natural), self._row(self.limits), CANDIDATES, self.seed, 1)

    def rows(self, mixtures: Sequence[Mapping[str, float]]) -> Floats:
        """[N, sources] of N mixtures."""
        return np.array([self._row(mixture) for mixture in mixtures])

    def _row(self, mixture: Mapping[str, float]) -> Floats:
        return np.array([mixture[name] for name in self.natural])

    def _named(self, row: Floats) -> dict[str, float]:
        return dict(zip(self.natural, row.tolist(), strict=True))


@dataclass(frozen=True)
class Found:
    """What came of a search."""

    shares: dict[str, float]  # the proposal
    weights: dict[str, float]  # the same for [mix.weights] of `kiloq prepare`: relative to the sources' sizes
    predicted: float  # nats a token, the targets' weighted mean
    before: list[float]  # measured with the corpus' own mixture, a seed each
    after: list[float]  # measured with the proposal
    correlation: float  # Spearman's rho of predicted and measured losses of mixtures that were kept from the fit
    error: float  # root of the mean squared error there
    points: list[tuple[float, float]]  # (predicted, measured) there
    losses: dict[str, tuple[float, float]]  # target -> its loss before and after
    laws: dict[str, Law]

    @property
    def gain(self) -> float:
        """How much lower the loss of the proposal is, nats a token."""
        return float(np.mean(self.before) - np.mean(self.after))

    @property
    def noise(self) -> float:
        """The standard error of `gain`: of each seed's own difference, for both begin with the same weights."""
        return float(np.std(np.subtract(self.before, self.after), ddof=1) / np.sqrt(len(self.before)))

    @property
    def better(self) -> bool:
        """Whether the proposal is better than the corpus as it is, beyond chance."""
        return self.gain > SURE * self.noise


def search(plan: Search, proxies: Proxies, jobs: int, progress: Progress) -> Found:
    """Train the proxies that are not trained yet and propose a mixture. Raises KiloqError if a training fails."""
    mixtures = plan.mixtures()
    own = [(f"own-{seed}", plan.natural, seed) for seed in range(SEEDS)]
    tried = [(f"{number:05}", mixture, 0) for number, mixture in enumerate(mixtures)]
    losses = _trained(proxies, [*own, *tried], jobs, progress, "proxies")
    targets = _targets(plan, losses[: len(own)])
    rows_NJ = plan.rows(mixtures)
    tables = {name: np.array([row[name] for row in losses[len(own) :]]) for name in targets}
    laws = {name: fit(rows_NJ[: plan.learned], table[: plan.learned]) for name, table in tables.items()}

    def predicted(shares_NJ: Floats) -> Floats:
        return np.asarray(sum(weight * laws[name].loss(shares_NJ) for name, weight in targets.items()))

    def measured(rows: Sequence[Mapping[str, float]]) -> list[float]:
        return [sum(weight * row[name] for name, weight in targets.items()) for row in rows]

    candidates_NJ = plan.candidates()
    best_NJ = candidates_NJ[np.argsort(predicted(candidates_NJ), kind="stable")[:CHOSEN]]
    shares = dict(zip(plan.natural, best_NJ.mean(axis=0).tolist(), strict=True))
    after = _trained(proxies, [(f"found-{seed}", shares, seed) for seed in range(SEEDS)], jobs, progress, "proposal")
    unseen_NJ, seen = rows_NJ[plan.learned :], np.array(measured(losses[len(own) + plan.learned :]))
    foreseen = predicted(unseen_NJ)
    means = [{name: float(np.mean([row[name] for row in part])) for name in targets} for part in (losses[: len(own)], after)]  # fmt: skip
    return Found(
        shares=shares,
        weights=_weights(shares, plan.natural),
        predicted=float(predicted(plan.rows([shares]))[0]),
        before=measured(losses[: len(own)]),
        after=measured(after),
        correlation=rank_correlation(foreseen, seen),
        error=float(np.sqrt(np.mean((foreseen - seen) ** 2))),
        points=list(zip(foreseen.tolist(), seen.tolist(), strict=True)),
        losses={name: (means[0][name], means[1][name]) for name in targets},
        laws=laws,
    )


def _trained(
    proxies: Proxies, wanted: Sequence[tuple[str, Mapping[str, float], int]], jobs: int, progress: Progress, what: str
) -> list[dict[str, float]]:
    """The losses of each proxy, in order; `jobs` are trained side by side, and none is begun after one has failed."""
    progress(what, 0, len(wanted))
    with ThreadPoolExecutor(jobs) as pool, proxies.stopped_on_error():
        waiting = [pool.submit(proxies.train, *one) for one in wanted]
        for done, future in enumerate(as_completed(waiting), start=1):
            future.result()
            progress(what, done, len(wanted))
    return [future.result() for future in waiting]


def _targets(plan: Search, measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Target -> weight, adding up to 1. Raises UsageError for one that no proxy was evaluated on."""
    known = list(measured[0])
    for name in plan.targets:
        if name not in known:
            raise UsageError(
                f"target {name!r:.60}: no text of it is held out: choose among {', '.join(known)}, or give the recipe of "
                "the proxies a smaller held_out or sequence"
            )
    wanted = plan.targets or dict.fromkeys(known, 1.0)
    total = sum(wanted.values())
    return {name: weight / total for name, weight in wanted.items()}


def _weights(shares: Mapping[str, float], natural: Mapping[str, float]) -> dict[str, float]:
    """Weights on top of the sources' sizes, the largest 1; a source that the search left out has 0."""
    ratios = {name: share / natural[name] for name, share in shares.items()}
    most = max(ratios.values())
    return {name: ratio / most for name, ratio in ratios.items()}


def as_json(plan: Search, found: Found) -> dict[str, Any]:
    """The contents of search.json."""
    record = {
        "natural": plan.natural, "limits": plan.limits, "proposal": found.shares, "weights": found.weights,
        "predicted_loss": found.predicted, "loss_before": found.before, "loss_after": found.after, "gain": found.gain,
        "standard_error": found.noise, "better": found.better,
        "held_out": {"mixtures": plan.held_out, "rank_correlation": found.correlation, "rms_error": found.error,
                     "predicted_and_measured": found.points},
        "targets": {name: {"before": before, "after": after, "law": vars(found.laws[name])}
                    for name, (before, after) in found.losses.items()},
    }  # fmt: skip
    copied: dict[str, Any] = json.loads(json.dumps(record))
    return copied
