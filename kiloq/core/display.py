"""What may reach a terminal: text from models and files is shown, never obeyed.

A model can be made to write escape sequences that move the cursor, set the clipboard or answer for the user. Every
control character except tab and newline is therefore shown as `\\x1b` when text goes to a terminal. Files and pipes
get the text as it is.
"""

from __future__ import annotations

import os
from typing import TextIO

# Unicode's category Cc is U+0000-001F and U+007F-009F. A carriage return is dropped: before a newline it says
# nothing, elsewhere it would overwrite the line.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
_CONTROLS[ord("\r")] = ""


def neutralise(text: str) -> str:
    """`text` with control characters made visible, safe to write to a terminal."""
    return text.translate(_CONTROLS)


def is_terminal(stream: TextIO) -> bool:
    """Whether a person sees what is written to, or typed into, `stream`."""
    try:
        return stream.isatty()
    except ValueError:  # already closed
        return False


def can_draw(stream: TextIO) -> bool:
    """Whether `stream` is a terminal whose cursor can be moved."""
    return is_terminal(stream) and os.environ.get("TERM", "dumb") != "dumb"


def wants_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that takes colours, and nobody asked for none (https://no-color.org)."""
    return can_draw(stream) and not os.environ.get("NO_COLOR")
