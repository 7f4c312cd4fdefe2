"""`python -m kiloq`, and where the `kiloq` command starts: Ctrl-C while the first modules load ends it without a word."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command line of this process and return its exit code."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing has begun: die as any program does
    from kiloq.cli import main as run

    signal.signal(signal.SIGINT, before)
    code = run()
    if "daft" in sys.modules:  # its threads abort a process that takes the interpreter down under them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
