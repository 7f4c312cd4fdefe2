"""How one request is sampled and when it stops: one frozen dataclass, checked when it is made.

The names are those of the OpenAI API and of vLLM where those have one. Defaults sample from the model's own
distribution, unchanged; a model folder's generation_config.json overrides them (`Model.defaults`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

from kiloq.core.errors import UsageError

MAX_CHOICES = 128
MAX_STOPS = 64
MAX_TOP_LOGPROBS = 20  # OpenAI's limit
MAX_DRAFT = 64  # ours

_NUMBERS = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
}
_WHOLE = {
    "top_k": (0, 1 << 31),
    "max_new_tokens": (1, 1 << 31),
    "min_new_tokens": (0, 1 << 31),
    "n": (1, MAX_CHOICES),
    "seed": (0, (1 << 64) - 1),
    "logprobs": (0, MAX_TOP_LOGPROBS),
    "prompt_logprobs": (0, MAX_TOP_LOGPROBS),
    "max_draft_tokens": (0, MAX_DRAFT),
}
_OPTIONAL = ("seed", "logprobs", "prompt_logprobs")  # None is a value of theirs


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Every field is checked; a wrong one raises UsageError with the value and the limits."""

    temperature: float = 1.0  # 0: greedy; else logits are divided by it
    top_k: int = 0  # keep the k likeliest tokens; 0: all
    top_p: float = 1.0  # keep the smallest likeliest set whose probability reaches it (nucleus, arXiv 1904.09751)
    min_p: float = 0.0  # keep tokens at least this fraction as likely as the likeliest (arXiv 2407.01082)
    repetition_penalty: float = 1.0  # of tokens in prompt or answer: logit / p if positive, * p if not (CTRL paper)
    presence_penalty: float = 0.0  # subtracted once from tokens of the answer (OpenAI)
    frequency_penalty: float = 0.0  # subtracted for every time a token is in the answer (OpenAI)
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to a token id's logit
    seed: int | None = None  # None: a fresh one each time
    stop: tuple[str, ...] = ()  # the answer ends before the first of these, which is never shown; one text is taken too
    stop_ids: tuple[int, ...] = ()  # the answer ends at these tokens, besides the model's own end tokens
    max_new_tokens: int = 512
    min_new_tokens: int = 0  # end tokens are impossible before
    n: int = 1  # independent answers to one prompt
    logprobs: int | None = None  # None: none; k: each token's log-probability and those of the k likeliest
    prompt_logprobs: int | None = None  # the same of the prompt's tokens from the second on
    ntk: Literal["exact", "frozen"] = "exact"  # frozen: the rotary base of the prompt's length stays (as in 2023)
    ignore_eos: bool = False  # go on past the model's own end tokens
    max_draft_tokens: int = 15  # guessed from repeated text in one step, where that is faster; same answer; 0: none

    def __post_init__(self) -> None:
        fill = object.__setattr__
        stop: object = self.stop
        fill(self, "stop", (stop,) if isinstance(stop, str) else _several("stop", stop))
        fill(self, "stop_ids", _several("stop_ids", self.stop_ids))
        fill(self, "logit_bias", _mapping("logit_bias", self.logit_bias))
        for name, (low, high) in _NUMBERS.items():
            fill(self, name, _number(name, getattr(self, name), low, high))
        for name, (least, most) in _WHOLE.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                fill(self, name, _whole(name, getattr(self, name), least, most))
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError(f"min_new_tokens is {self.min_new_tokens}: it must not exceed max_new_tokens, which is {self.max_new_tokens}")  # fmt: skip
        if self.ntk not in ("exact", "frozen"):
            raise UsageError(f"ntk is {self.ntk!r:.60}: it must be 'exact' or 'frozen'")
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore_eos is {self.ignore_eos!r:.60}: it must be true or false")
        self._check_stops()
        fill(self, "stop_ids", tuple(_whole("a token id in stop_ids", token, 0, 1 << 31) for token in self.stop_ids))
        bias = {
            _whole("a token id in logit_bias", token, 0, 1 << 31): _number(f"logit_bias[{token}]", value, -1000, 1000)
            for token, value in self.logit_bias.items()
        }
        fill(self, "logit_bias", bias)

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOPS or len(self.stop_ids) > MAX_STOPS:
            raise UsageError(f"{max(len(self.stop), len(self.stop_ids))} stops were given: the limit is {MAX_STOPS}")
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= 1000:
                raise UsageError(f"stop has {text!r:.60}: each must be a text of 1 to 1000 characters")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The field names, in the order of this file."""
        return tuple(f.name for f in fields(cls))

    def override(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed; an unknown name raises UsageError with the nearest one."""
        for name in changes:
            if name not in self.names():
                near = difflib.get_close_matches(name, self.names(), 1)
                hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(self.names())}"
                raise UsageError(f"there is no sampling parameter {name!r}: {hint}")
        return replace(self, **changes)


def _number(name: str, value: object, low: float, high: float) -> float:
    fits = not isinstance(value, bool) and isinstance(value, Real)
    if not fits or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        raise UsageError(f"{name} is {value!r:.60}: it must be a number from {low:g} to {high:g}")
    return value if type(value) in (int, float) else float(value)  # type: ignore[return-value, arg-type]


def _whole(name: str, value: object, low: int, high: int) -> int:
    number = None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if number is None or not low <= number <= high:
        raise UsageError(f"{name} is {value!r:.60}: it must be a whole number from {low} to {high}")
    return number


def _several(name: str, value: object) -> tuple[Any, ...]:
    if value is None:
        return ()
    single = isinstance(value, (str, bytes, bytearray, Mapping)) or getattr(value, "ndim", 1) != 1
    if single or not isinstance(value, Collection):
        raise UsageError(f"{name} is {value!r:.60}: it must be a list")
    return tuple(value)


def _mapping(name: str, value: object) -> dict[Any, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise UsageError(f"{name} is {value!r:.60}: it must be an object of token ids and numbers")
    return dict(value or {})
