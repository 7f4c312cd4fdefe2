"""Checks that all steps share: a setting out of range is a UsageError with the value, the limit and the next step."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kiloq.core.errors import UsageError


def check_shares(step: Any, *names: str) -> None:
    """Fields that are shares of a whole: 0 to 1, or None for a rule that is off."""
    for name in names:
        value = getattr(step, name)
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{step.name}: {name} is {value}: give a share from 0 to 1, or false to switch it off")


def check_counts(step: Any, *names: str, least: int = 0) -> None:
    """Fields that are counts, or other numbers with a smallest value, or None for a rule that is off."""
    for name in names:
        value = getattr(step, name)
        if value is not None and not value >= least:
            raise UsageError(f"{step.name}: {name} is {value}: give {least} or more, or false to switch it off")


def check_choice(step: Any, name: str, allowed: Collection[Any]) -> None:
    """A field that is one of a few values."""
    value = getattr(step, name)
    if value not in allowed:
        raise UsageError(f"{step.name}: {name} is {value!r:.40}: choose one of {', '.join(map(str, allowed))}")
