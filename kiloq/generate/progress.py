"""What a person sees on stderr while a model loads: a spinner with the step that is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def spinner(label: str) -> Iterator[Callable[[str], None]]:
    """A spinner that vanishes at the end; the function it gives shows another step behind the label."""
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(label)) as status:
        yield lambda step: status.update(escape(f"{label}: {step}"))
