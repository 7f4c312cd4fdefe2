"""Every kernel on every instruction set of this processor, against naive code in double (kernels_check.cpp)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from kernels_build import build, check, instruction_sets


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler is here: install g++ to check the kernels")
    return build(compiler, instruction_sets(), tmp_path_factory.mktemp("kernels"))


@pytest.mark.timeout(400)  # the first one compiles: 20 seconds on two idle cores, minutes on busy ones
@pytest.mark.parametrize("isa", instruction_sets())
def test_kernels_are_right(program: Path, isa: str) -> None:
    paths = subprocess.run([str(program), "--paths"], capture_output=True, text=True, check=True).stdout.split()
    if isa not in paths:
        pytest.skip(f"this processor or compiler has no {isa}: it runs {', '.join(paths)}")
    check([str(program)], isa)
