"""The two languages say the same, and the right one is chosen."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from kiloq.chat.messages import CHINESE, ENGLISH, Texts, choose_language


@pytest.mark.parametrize("name", [field.name for field in fields(Texts) if field.name != "help"])
def test_both_languages_fill_in_the_same_values(name: str) -> None:
    blanks = [set(re.findall(r"\{(\w+)\}", getattr(texts, name))) for texts in (ENGLISH, CHINESE)]
    assert blanks[0] == blanks[1]


@pytest.mark.parametrize(
    ("asked", "environment", "language"),
    [
        (None, {}, "en"),
        ("zh", {"LANG": "en_US.UTF-8"}, "zh"),
        ("en", {"LANG": "zh_CN.UTF-8"}, "en"),
        (None, {"LANG": "zh_CN.UTF-8"}, "zh"),
        (None, {"LANG": "de_DE.UTF-8"}, "en"),
        (None, {"KILOQ_LANG": "en", "LC_ALL": "zh_TW"}, "en"),
        (None, {"LC_ALL": "C.UTF-8", "LANG": "zh_CN.UTF-8"}, "en"),
        (None, {"LC_ALL": "", "LC_MESSAGES": "zh", "LANG": "en"}, "zh"),
    ],
)
def test_language(asked: str | None, environment: dict[str, str], language: str) -> None:
    assert choose_language(asked, environment) == language
