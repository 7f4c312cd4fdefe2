"""A command and all its processes, watched while they run: time between its lines, memory, and what lies in a folder.

Processor time and memory are read from /proc for the whole tree of processes every TICK_S: time as each process was
last seen, so what one does in its last moment is lost; memory as proportional set size, which counts a page that
several processes share once. Source: Linux, proc(5): stat and smaps_rollup.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TICK_S = 0.1
LOOK_EVERY = 5  # ticks between two looks at memory and the folder, which cost more
HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass
class Watched:
    """What was seen of a command."""

    stdout: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_pss_mb: float = 0.0
    peak_folder_mb: float = 0.0
    sizes: dict[str, int] = field(default_factory=dict)  # folder of the work folder -> bytes, the most that were seen
    lines: list[tuple[str, float, float]] = field(default_factory=list)  # of stderr, with wall and CPU s before it

    def between(self) -> list[dict[str, float | str]]:
        """What was done after each line of stderr until the next: its words, wall and processor seconds."""
        ends = [*self.lines[1:], ("", self.wall_s, self.cpu_s)]
        return [
            {"what": what.split(":")[0], "wall_s": round(end[1] - wall, 2), "cpu_s": round(end[2] - cpu, 2)}
            for (what, wall, cpu), end in zip(self.lines, ends, strict=True)
        ]


def watch(command: Sequence[str], folder: Path) -> Watched:
    """Runs a command that must succeed; `folder` is where it works. Its stdout is kept."""
    seen, ticks = Watched(), dict[int, int]()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def read() -> None:
        for line in process.stderr or ():
            seen.lines.append((line.strip(), time.perf_counter() - start, sum(ticks.copy().values()) / HERTZ))

    reader = threading.Thread(target=read)
    reader.start()
    look = 0
    while process.poll() is None:
        tree = _tree(process.pid)
        ticks.update(tree)
        if look % LOOK_EVERY == 0:
            seen.peak_pss_mb = max(seen.peak_pss_mb, sum(map(_pss_kb, tree)) / 1000)
            _measure(folder, seen)
        look += 1
        time.sleep(TICK_S)
    reader.join()
    assert process.stdout is not None
    seen.stdout, seen.wall_s, seen.cpu_s = (
        process.stdout.read(),
        time.perf_counter() - start,
        sum(ticks.values()) / HERTZ,
    )
    if process.returncode:
        raise SystemExit("\n".join(line for line, _, _ in seen.lines[-5:]))
    return seen


def _tree(root: int) -> dict[int, int]:
    """Process -> ticks of processor time, of `root` and everything below it."""
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    found, new = {root}, {root}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return {pid: ticks[pid] for pid in sorted(found) if pid in ticks}


def _pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _measure(folder: Path, seen: Watched) -> None:
    """The bytes of every folder two levels below `folder`, the most so far, and of all of it."""
    sizes: dict[str, int] = {}
    for at, _, files in os.walk(folder):
        name = "/".join(Path(at).relative_to(folder).parts[:2])
        for file in files:
            try:
                sizes[name] = sizes.get(name, 0) + Path(at, file).stat().st_size
            except OSError:  # it has been moved
                continue
    for name, size in sizes.items():
        seen.sizes[name] = max(seen.sizes.get(name, 0), size)
    seen.peak_folder_mb = max(seen.peak_folder_mb, sum(sizes.values()) / 1e6)
