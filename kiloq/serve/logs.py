"""Log lines on stderr: words for people, or one JSON object a line. Neither has texts of prompts or answers, nor keys."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

log = logging.getLogger("kiloq.serve")


class Words(logging.Formatter):
    """key=value after the message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        line = f"kiloq: {record.getMessage()} {fields}".rstrip()
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class Lines(logging.Formatter):
    """JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        shape: dict[str, Any] = {
            "time": round(time.time(), 3),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        shape |= getattr(record, "fields", {})
        if record.exc_info:
            shape["traceback"] = self.formatException(record.exc_info)
        return json.dumps(shape, ensure_ascii=False, default=str)


def set_up(*, as_json: bool) -> None:
    """Sends our lines to stderr; of uvicorn's, only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines() if as_json else Words())
    logging.getLogger("kiloq").handlers = [handler]
    logging.getLogger("kiloq").setLevel(logging.INFO)
    logging.getLogger("uvicorn").handlers = [handler]
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def say(event: str, **fields: Any) -> None:
    """One line."""
    log.info(event, extra={"fields": fields})


class Progress:
    """Lines of a load: each new one, and of those that only count on, one a second."""

    def __init__(self) -> None:
        self._stage, self._said_s = "", 0.0

    def __call__(self, line: str) -> None:
        """Says a line, or not."""
        stage, now = line.partition(":")[0], time.monotonic()
        if stage != self._stage or now - self._said_s >= 1.0:
            self._stage, self._said_s = stage, now
            say("loading", detail=line)
