"""What this process may use of the machine: processors and memory, cgroup limits included. Unknown things are None."""

from __future__ import annotations

import math
import os
from pathlib import Path

# Instruction sets that decide how fast a model runs: x86-64 vectors and matrices, ARM's NEON and its dot products.
FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "bf16",
)  # fmt: skip
_NO_LIMIT = 1 << 60  # cgroup v1 writes a number of this size where there is no limit


def cpu_model() -> str:
    """The processor's name."""
    return _cpu_field("model name") or "unknown"


def cpu_flags() -> tuple[str, ...]:
    """Those of FLAGS that the processor has."""
    present = set((_cpu_field("flags") or _cpu_field("Features") or "").split())
    return tuple(flag for flag in FLAGS if flag in present)


def allowed_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def core_quota() -> float | None:
    """Processors' worth of time that the cgroup grants; None without a limit."""
    words = (_read("/sys/fs/cgroup/cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1])
    quota, period = (_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    if quota and period and quota.isdigit() and period.isdigit() and int(period):
        return int(quota) / int(period)
    return None


def usable_cores() -> int:
    """Threads that are worth having: the allowed processors, no more than the cgroup's quota grants time for."""
    quota = core_quota()
    return allowed_cores() if quota is None else max(1, min(allowed_cores(), math.ceil(quota)))


def memory() -> tuple[int | None, int | None]:
    """(total, available) bytes, both no more than the cgroup's limit."""
    lines = (_read("/proc/meminfo") or "").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    limit = memory_limit()
    found = []
    for key in ("MemTotal", "MemAvailable"):
        amount = int(fields[key].split()[0]) * 1024 if key in fields else None
        found.append(amount if amount is None or limit is None else min(amount, limit))
    return found[0], found[1]


def memory_limit() -> int | None:
    """Bytes that the cgroup grants (version 2, then 1); None without a limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path)
        if text and text.isdigit() and int(text) < _NO_LIMIT:
            return int(text)
    return None


def _cpu_field(name: str) -> str | None:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
