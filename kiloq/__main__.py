"""`python -m kiloq`, and where the `kiloq` command starts: Ctrl-C while the first modules load ends it without a word."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command line of this process and return its exit code."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing has begun: die as any program does
    from kiloq.cli import main as run

    signal.signal(signal.SIGINT, before)
    return run()


if __name__ == "__main__":
    sys.exit(main())
