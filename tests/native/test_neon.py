"""The kernels for ARM (NEON with the dot product), cross-compiled and run in an emulator, by the same checks.

On an ARM machine test_kernels.py runs them without one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kernels_build import build, check

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.mark.timeout(400)  # compiles and emulates: 20 seconds on two idle cores, minutes on busy ones
@pytest.mark.skipif(
    shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None,
    reason=f"{COMPILER} or {EMULATOR} is not here: apt-get install g++-aarch64-linux-gnu qemu-user",
)
def test_neon_kernels_are_right(tmp_path: Path) -> None:
    check([EMULATOR, str(build(COMPILER, ["neon"], tmp_path))], "neon")
