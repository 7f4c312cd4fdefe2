"""What a quantisation is told: bits, groups, order, damping. The defaults are the original's (run_gptq.py). No torch."""

from __future__ import annotations

from dataclasses import dataclass

from kiloq.core.errors import UsageError

BITS = (4, 8)
GROUPS = (32, 64, 128, -1)
METHODS = ("gptq", "rtn")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One quantisation of a matrix or of a whole model."""

    method: str = "gptq"  # "gptq", or "rtn": round to nearest
    bits: int = 4
    group: int = 128  # columns that share a scale; -1: the whole row
    symmetric: bool = True  # the middle code is zero; else each group has a zero point
    desc_act: bool = False  # columns with the largest activations first
    static_groups: bool = False  # with desc_act: groups of neighbours, so that the file needs no order of columns
    damping: float = 0.01  # added to the Hessian's diagonal, as a share of its mean
    true_sequential: bool = True  # each matrix sees what the quantised ones before it in the same layer give
    exact_peaks: bool = False  # the largest weight of each group lies on its grid and no weight beyond it
    search: bool = False  # shrink the range of each group where that lowers its own rounding error
    scale_dtype: str = "fp16"  # scales are rounded to it before the codes are chosen: "fp16", or "fp32"

    def __post_init__(self) -> None:
        choices = {"method": METHODS, "bits": BITS, "group": GROUPS, "scale_dtype": ("fp16", "fp32")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r:.40}: it must be one of {', '.join(map(str, allowed))}"
                )
        if self.exact_peaks and self.search:
            raise UsageError("exact peaks and a search for a smaller range exclude each other: choose one")
        if not 0 < self.damping < 1:
            raise UsageError(f"damping is {self.damping}: a share above 0 and below 1 was expected")
