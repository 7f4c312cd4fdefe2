"""The spinner of loading: not before a second, then with the step that is under way."""

from __future__ import annotations

import sys

import pexpect
import pytest
from command_line import environment

CODE = """
import sys
from kiloq.generate import progress
progress.PATIENCE_S = float(sys.argv[1])
with progress.spinner("loading [x]") as say:
    say("one")
    say("two")
print("rich" in sys.modules)
"""


@pytest.mark.parametrize(("patience_s", "shows"), [("60", False), ("0", True)])
def test_the_spinner_is_patient(patience_s: str, shows: bool, tmp_path) -> None:
    """A load that is soon done shows nothing, and does not wait for rich to be imported either."""
    child = pexpect.spawn(
        sys.executable, ["-c", CODE, patience_s], env=environment(tmp_path), encoding="utf-8", timeout=60
    )
    output = child.read()
    child.close()
    assert child.exitstatus == 0
    assert ("loading [x]: two" in output) == shows
    assert str(shows) in output
    assert shows or output == "False\r\n"
