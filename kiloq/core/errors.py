"""The errors that kiloq raises for people: one sentence, always with the value, the limit and the next step.

Whatever a person did, typed or loaded is answered with one of these; the command line prints the sentence and exits
with the class's exit code, and shows a traceback only with `--debug`. `assert` and every other exception mean a bug
of ours.

    KiloqError                something went wrong that the reader of the sentence can put right   exit 1
    |-- UsageError            an option or argument is wrong                                       exit 2
    |-- FormatError           a file is damaged, hostile, or of a kind we do not read              exit 1
    |-- MissingError          a file, asset or optional package is not there                       exit 1
    |-- ContextError          a prompt does not fit the model's context                            exit 1
    `-- BusyError             too many requests are waiting already                                exit 1
"""

from __future__ import annotations

import errno


class KiloqError(Exception):
    """Base of all errors meant for people. `str(error)` is one sentence."""

    exit_code = 1


class UsageError(KiloqError, ValueError):
    """An argument, option or request field is out of range or of the wrong type."""

    exit_code = 2


class FormatError(KiloqError, ValueError):
    """A file cannot be read safely: damaged, hostile or unsupported. The sentence starts with the file's path."""


class MissingError(KiloqError, FileNotFoundError):
    """A file, asset or optional package is missing. The sentence says how to get it."""


class ContextError(KiloqError, ValueError):
    """A prompt and its answer do not fit the context; the sentence has both numbers."""


class BusyError(KiloqError):
    """The queue is full; the sentence has its length and limit. The same request may be answered later."""


def file_sentence(error: OSError) -> str:
    """What to tell people of an error of the file system."""
    place = f"{error.filename}: " if error.filename is not None else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{place}{error.strerror or error}{': make room, or write to another place' if full else ''}"
