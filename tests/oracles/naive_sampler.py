"""Every sampling rule once more, in float64 and plain Python, written from its definition."""

from __future__ import annotations

import math

from kiloq.generate.params import SamplingParams


def naive_distribution(
    logits: list[float],
    params: SamplingParams,
    prompt: list[int],
    answer: list[int],
    banned: list[int] = [],  # noqa: B006
) -> dict[int, float]:
    """Token id -> probability of everything that may be drawn."""
    scores = dict(enumerate(logits))
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    for token in set(prompt) | set(answer):
        scores[token] = (
            scores[token] * params.repetition_penalty
            if scores[token] < 0
            else scores[token] / params.repetition_penalty
        )
    for token in set(answer):
        scores[token] -= params.presence_penalty + params.frequency_penalty * answer.count(token)
    for token in banned:
        del scores[token]
    if params.temperature == 0:
        best = max(scores, key=lambda token: (scores[token], -token))
        return {best: 1.0}
    scores = {token: score / params.temperature for token, score in scores.items()}
    if params.top_k:
        threshold = sorted(scores.values(), reverse=True)[: params.top_k][-1]
        scores = {token: score for token, score in scores.items() if score >= threshold}
    best_score = max(scores.values())
    shares = _normalised({token: math.exp(score - best_score) for token, score in scores.items()})
    if params.top_p < 1:
        kept, mass = {}, 0.0
        for token in sorted(shares, key=lambda token: (-shares[token], token)):
            kept[token] = shares[token]
            mass += shares[token]
            if mass >= params.top_p:
                break
        shares = _normalised(kept)
    if params.min_p:
        most = max(shares.values())
        shares = _normalised({token: share for token, share in shares.items() if share >= params.min_p * most})
    return shares


def _normalised(weights: dict[int, float]) -> dict[int, float]:
    total = math.fsum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def naive_choice(shares: dict[int, float], uniform: float) -> int:
    """The token at which the running sum, by token id, passes the uniform number."""
    total = 0.0
    for token in sorted(shares):
        total += shares[token]
        if uniform < total:
            return token
    return max(shares)
