"""Builds tests/native/kernels_check.cpp with the engine's kernels, without Python, CMake or nanobind in between.

Instruction sets and compiler flags are read from the engine's CMakeLists.txt, so what is tested is what is shipped; only
the portable path is optimised less, which compiles it five times faster.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).resolve().parent
SOURCES = TESTS.parent / "kiloq" / "native" / "src"
LINKED = ["arena", "cpu", "kernels_portable", "pack"]  # what the kernels and their checks need of the engine


def _engine_flags() -> tuple[list[str], dict[str, tuple[str, list[str]]]]:
    """The flags of every file; and for each instruction set the file that defines it and its flags."""
    text = (SOURCES / "CMakeLists.txt").read_text(encoding="utf-8")
    common = re.search(r"target_compile_options\(_native PRIVATE ([^)]*)\)", text)
    assert common, "CMakeLists.txt no longer states the engine's flags in target_compile_options(_native PRIVATE ...)"
    variables: dict[str, str] = {}

    def expand(flags: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], flags)

    for name, value in re.findall(r"^ *set\((avx\w+) ([^)]*)\)", text, re.MULTILINE):
        variables[name] = expand(value)
    sets = re.findall(r"^ *kernels\((kernels_\w+\.h) (\w+) ([^)]*)\)", text, re.MULTILINE)
    return common[1].split(), {isa: (file, expand(flags).split()) for file, isa, flags in sets}


def instruction_sets(machine: str = "") -> list[str]:
    """Names of the paths that the engine has for a processor family (this one's by default)."""
    arm = (machine or platform.machine()) in ("aarch64", "arm64")
    return ["portable", *(isa for isa in _engine_flags()[1] if (isa == "neon") == arm)]


def build(compiler: str, isas: list[str], folder: Path) -> Path:
    """Compiles into `folder` and returns the program; static, so that it also runs in an emulator without libraries.

    Instruction sets that the compiler does not know are left out, as CMake does.
    """
    common, sets = _engine_flags()
    base = [compiler, "-std=c++20", *common, "-w", f"-I{SOURCES}"]
    (folder / "empty.cpp").touch()

    def known(isa: str) -> bool:
        probe = [compiler, *sets[isa][1], "-fsyntax-only", str(folder / "empty.cpp")]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0

    jobs: list[tuple[Path, list[str]]] = []
    isas = [isa for isa in isas if isa in sets and known(isa)]
    for isa in isas:
        source = folder / f"kernels_{isa}.cpp"
        source.write_text(f'#define KILOQ_ISA {isa}\n#include "{SOURCES / sets[isa][0]}"\n', encoding="utf-8")
        jobs.append((source, sets[isa][1]))
    has = [f"-DKILOQ_HAS_{isa.upper()}" for isa in isas]
    rest = [TESTS / "native" / "kernels_check.cpp", *(SOURCES / f"{name}.cpp" for name in LINKED)]
    jobs += [(source, ["-O1", *has]) for source in rest]

    def compile_one(job: tuple[Path, list[str]]) -> str:
        source, flags = job
        target = folder / f"{source.stem}.o"
        _run([*base, *flags, "-c", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, jobs))
    program = folder / "kernels_check"
    _run([compiler, "-static", *objects, "-o", str(program)])
    return program


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"


def check(command: list[str], isa: str) -> None:
    """Runs the program with a forced path; its lines are the failures."""
    environment = os.environ | {"KILOQ_CPU": isa}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, f"exit {result.returncode}\n{result.stdout}{result.stderr}"
    assert result.stdout.startswith(f"{isa}: 0 of "), result.stdout
