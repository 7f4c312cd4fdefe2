"""Text for terminals: no control character gets through, everything else stays."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from kiloq.core.display import neutralise


@given(st.text())
def test_only_control_characters_change(text: str) -> None:
    shown = neutralise(text)
    assert all(unicodedata.category(char) != "Cc" or char in "\t\n" for char in shown)
    if all(unicodedata.category(char) != "Cc" or char in "\t\n" for char in text):
        assert shown == text


def test_every_control_character_is_named() -> None:
    assert neutralise("\x1b[2J\x07\x9b\x7f\t\n你") == "\\x1b[2J\\x07\\x9b\\x7f\t\n你"
    assert neutralise("DOS\r\nline over\rwritten") == "DOS\nline overwritten"
