"""Rotary positions stretched beyond the trained length by a fixed rule: linear, LLaMA 3.1's, YaRN, or a file's table.

Every rule is the same thing in the end: a divisor for each frequency, and for YaRN a factor on cosine and sine. The
stretch never depends on the length of a sequence (Qwen-1's dynamic NTK does, and lives in `kiloq.model.ntk`).
Sources: position interpolation (arXiv 2306.15595); YaRN (arXiv 2309.00071), sections 3.2 to 3.4; "llama3" as in the
rope parameters' documentation of transformers 5. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from kiloq.core.errors import FormatError
from kiloq.core.files import shown

KINDS = ("linear", "llama3", "yarn", "factors")
MAX_FACTOR = 1e6
MAX_LENGTH = 1 << 31
SMALLEST_RAMP = 0.001  # YaRN: width of a ramp whose ends fall together, in pairs of dimensions


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """One rule; fields that its kind does not use keep their defaults. Raises FormatError for impossible values."""

    kind: str  # one of KINDS
    factor: float = 1.0  # how far slow frequencies are stretched; unused by "factors"
    original_length: int = 0  # "llama3", "yarn": tokens of the training before the stretch
    low_freq_factor: float = 1.0  # "llama3": fewer turns in original_length than this are stretched in full
    high_freq_factor: float = 4.0  # "llama3": more turns than this are left alone
    beta_fast: float = 32.0  # "yarn": more turns than this are left alone
    beta_slow: float = 1.0  # "yarn": fewer turns than this are stretched in full
    truncate: bool = True  # "yarn": the ends of the ramp are rounded outwards to whole pairs
    attention_factor: float = 1.0  # "yarn": on cosine and sine; usually `yarn_magnitude(factor)`
    table: tuple[float, ...] = ()  # "factors": the divisors themselves

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FormatError(f"rope scaling {shown(self.kind)} is not computed: known are {', '.join(KINDS)}")
        _check("factor", self.factor, 1.0, MAX_FACTOR)
        _check("attention_factor", self.attention_factor, 1e-3, 1e3)
        if self.kind in ("llama3", "yarn"):
            _check("original_length", self.original_length, 1, MAX_LENGTH)
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            _check(low, getattr(self, low), 1e-6, MAX_FACTOR)
            _check(high, getattr(self, high), 1e-6, MAX_FACTOR)
            if getattr(self, low) >= getattr(self, high):
                raise FormatError(f"{low} {getattr(self, low)} of rope scaling must be below {high}")
        object.__setattr__(self, "table", tuple(self.table))
        for divisor in self.table:
            _check("a divisor", divisor, 1 / MAX_FACTOR, MAX_FACTOR)

    def factors(self, rotary_dim: int, base: float) -> tuple[float, ...]:
        """What each of the rotary_dim / 2 frequencies is divided by, fastest first."""
        return _factors(self, rotary_dim, base)

    def stretched(self, length: int) -> int:
        """Tokens that a model with `length` in its configuration handles under this rule.

        By convention files name the length before a linear stretch; with YaRN either one, and after LLaMA 3.1's rule
        the final one.
        """
        if self.kind == "linear":
            return int(self.factor * length)
        return max(length, int(self.factor * self.original_length)) if self.kind == "yarn" else length


def yarn_magnitude(factor: float, strength: float = 1.0) -> float:
    """YaRN's factor on cosine and sine for a stretch by `factor` (its section 3.4: 1/sqrt(t))."""
    return 1.0 if factor <= 1 else 0.1 * strength * math.log(factor) + 1.0


def _check(name: str, value: object, low: float, high: float) -> None:
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        raise FormatError(f"{name} of rope scaling is {shown(value)}: it must be a number from {low:g} to {high:g}")


@lru_cache(maxsize=64)  # asked for once a forward pass
def _factors(scaling: RopeScaling, rotary_dim: int, base: float) -> tuple[float, ...]:
    s, pairs = scaling, rotary_dim // 2
    if s.kind == "factors":
        if len(s.table) != pairs:
            raise FormatError(f"rope scaling has {len(s.table)} divisors for {pairs} frequencies: give one each")
        return s.table
    if s.kind == "linear":
        return (float(s.factor),) * pairs
    kept = _llama3_kept(s, rotary_dim, base) if s.kind == "llama3" else _yarn_kept(s, rotary_dim, base)
    return tuple(1.0 / (share + (1.0 - share) / s.factor) for share in kept)


def _llama3_kept(s: RopeScaling, rotary_dim: int, base: float) -> list[float]:
    """How much of each frequency stays as it was: all above high_freq_factor turns, none below low_freq_factor."""
    turns = [s.original_length / (2 * math.pi * base ** (2 * i / rotary_dim)) for i in range(rotary_dim // 2)]
    return [_clip((turn - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)) for turn in turns]


def _yarn_kept(s: RopeScaling, rotary_dim: int, base: float) -> list[float]:
    """The same for YaRN, whose ramp is linear in the number of the pair instead of its frequency."""

    def pair_of(turns: float) -> float:
        return rotary_dim * math.log(s.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair_of(s.beta_fast), pair_of(s.beta_slow)
    if s.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    if last < first:
        raise FormatError(
            f"original_length {s.original_length} of rope scaling leaves YaRN no frequency to stretch at rope base "
            f"{base:g}: check both"
        )
    width = last - first or SMALLEST_RAMP
    return [1.0 - _clip((i - first) / width) for i in range(rotary_dim // 2)]


def _clip(share: float) -> float:
    return min(max(share, 0.0), 1.0)
