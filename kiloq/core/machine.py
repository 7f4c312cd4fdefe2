"""What this process may use of the machine: memory, cgroup limits included."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_bytes() -> tuple[int, int]:
    """(total, available) bytes, both no more than the cgroup's limit; (0, 0) where the system does not say."""
    if not _MEMINFO.exists():
        return 0, 0
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    total, available = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    limit = cgroup_memory_limit()
    return (min(total, limit), min(available, limit)) if limit else (total, available)


def cgroup_memory_limit() -> int | None:
    """Bytes that the process's cgroup may use (version 2, then 1); None without a limit."""
    for path in _CGROUP_LIMITS:
        if path.exists() and (text := path.read_text().strip()).isdigit() and int(text) < 1 << 60:
            return int(text)
    return None
