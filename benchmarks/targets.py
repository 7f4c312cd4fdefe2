"""What kiloq's CPU engine has to reach, as ratios against other engines on the same weights: a floor and the aim.

Every ratio is kiloq's figure over the other's, so more is better, and 1.0 is a draw. The text says where the numbers
differ for the 1.8 B shape, whose decoding sits on the memory bandwidth with every engine.
"""

from __future__ import annotations

from dataclasses import dataclass

LLAMA, TRANSFORMERS, BANDWIDTH, OWN_BF16, WHEEL = (
    "llama.cpp",
    "transformers bf16",
    "bandwidth",
    "kiloq bf16",
    "xllamacpp",
)
LARGE = "1.8b"


@dataclass(frozen=True)
class Target:
    """`floor` must hold; `stretch` is the aim."""

    floor: float
    stretch: float


_LLAMA = {
    ("decode", "int4"): Target(1.15, 1.6),
    ("decode", "int8"): Target(1.2, 1.5),
    ("decode", "bf16"): Target(1.0, 1.1),
    ("prefill 512", "int4"): Target(1.4, 1.9),
    ("prefill 512", "int8"): Target(1.9, 2.5),
    ("8 streams", "int4"): Target(1.5, 4.0),
    ("8 streams", "int8"): Target(1.5, 3.0),
    ("32 streams", "int4"): Target(1.3, 2.8),
    ("32 streams", "int8"): Target(1.3, 2.5),
    ("decode at 8,192", "int8"): Target(1.3, 2.0),
    ("decode at 32,768", "int8"): Target(1.3, 2.0),
}
_OTHERS = {
    ("decode", "int4", TRANSFORMERS): Target(7.0, 12.0),
    ("decode", "int8", OWN_BF16): Target(1.5, 1.9),
    ("decode", "int4", OWN_BF16): Target(2.2, 3.5),
    ("start", "int4", WHEEL): Target(1.0, 2.0),
}


def target(model: str, work: str, weights: str, against: str) -> Target | None:
    """The target of one comparison; None where only the figure is of interest."""
    if against == BANDWIDTH:
        return Target(0.9, 0.97)
    if against != LLAMA:
        return _OTHERS.get((work, weights, against))
    found = _LLAMA.get((work, weights))
    if found and model == LARGE and work == "decode":
        return Target(1.0, found.stretch)
    if found and model == LARGE and work == "prefill 512":
        return Target(1.8, max(1.8, found.stretch))
    return found
