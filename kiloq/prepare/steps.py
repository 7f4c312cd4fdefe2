"""The steps that a recipe can name, and how a table of a recipe becomes one.

A table has `kind`, the step's name, and its fields (kiloq.core.recipe says how they are written).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kiloq.core.errors import UsageError
from kiloq.core.recipe import from_table, nearest
from kiloq.prepare.clean import Clean
from kiloq.prepare.decontaminate import Decontaminate
from kiloq.prepare.dedup.exact import Exact
from kiloq.prepare.dedup.fuzzy import Fuzzy
from kiloq.prepare.documents import Step
from kiloq.prepare.extract import Extract
from kiloq.prepare.language import Language
from kiloq.prepare.models.classifier import Classifier
from kiloq.prepare.models.perplexity import Perplexity
from kiloq.prepare.models.vote import Vote
from kiloq.prepare.pii import PersonalData
from kiloq.prepare.rules.c4 import C4
from kiloq.prepare.rules.chinese import Chinese
from kiloq.prepare.rules.fineweb import FineWeb
from kiloq.prepare.rules.gopher import Gopher, GopherRepetition
from kiloq.prepare.words import BadWords

STEPS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        Extract, Clean, Language, C4, Gopher, GopherRepetition, FineWeb, Chinese, Classifier, Perplexity, Vote, BadWords,
        PersonalData, Exact, Fuzzy, Decontaminate,
    )
}  # fmt: skip


def make_step(table: Mapping[str, Any]) -> Step:
    """The step that a recipe's table describes. Raises UsageError for what is unknown, missing or of another type."""
    name = table.get("kind")
    if not isinstance(name, str):
        raise UsageError(f"a step has no kind: give kind = one of {', '.join(STEPS)}")
    if name not in STEPS:
        raise UsageError(f"the step {name!r:.60} is not known: {nearest(name, STEPS)}")
    step: Step = from_table(STEPS[name], {key: value for key, value in table.items() if key != "kind"}, name)
    return step
