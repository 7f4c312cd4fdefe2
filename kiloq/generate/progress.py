"""What a person sees on stderr while a model loads: a spinner with the step that is under way.

It appears when loading has taken a second: small models are there before anybody wonders, and are not kept waiting
for rich to be imported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

PATIENCE_S = 1.0


@contextmanager
def spinner(label: str) -> Iterator[Callable[[str], None]]:
    """A spinner that vanishes at the end; the function it gives shows another step behind the label."""
    begun, update = time.monotonic(), None
    with ExitStack() as stack:

        def say(step: str) -> None:
            nonlocal update
            if update is None and time.monotonic() - begun >= PATIENCE_S:
                from rich.console import Console

                update = stack.enter_context(Console(stderr=True).status("")).update
            if update is not None:
                from rich.markup import escape

                update(escape(f"{label}: {step}"))

        yield say
