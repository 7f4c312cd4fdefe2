"""Whether the machine was ours while something was measured: processor time that everyone else took, hypervisor included.

Two threads that wait for each other at every matrix lose far more to a neighbour than the time it takes, so a figure
from a disturbed slice says nothing. Source: Linux, proc(5): /proc/stat and /proc/PID/stat.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

TOLERATED = 0.03  # share of all processors; ours: ticks are 10 ms, so a slice of 1 s resolves 0.005
GLANCE_S = 0.25  # looked at before a slice is begun
PATIENCE_S = 20.0  # waited for a quiet moment, in all, before a figure is taken as it comes


def quietly(measure: Callable[[], float], patience_s: float = PATIENCE_S) -> tuple[float, bool]:
    """(figure, undisturbed): what `measure` returns from a run of it in which only this process and its children worked.

    Waits for a quiet moment and tries again while `patience_s` lasts, then gives the last figure.
    """
    end = time.perf_counter() + patience_s
    while True:
        while others(lambda: time.sleep(GLANCE_S)) > TOLERATED and time.perf_counter() < end:
            pass
        figures: list[float] = []
        if others(lambda: figures.append(measure())) <= TOLERATED:  # noqa: B023 - called before the next turn
            return figures[0], True
        if time.perf_counter() >= end:
            return figures[0], False


def others(action: Callable[[], object]) -> float:
    """Share of all processors that others used while `action` ran."""
    start, before = time.perf_counter(), _busy() - _used()
    action()
    return (_busy() - _used() - before) / (time.perf_counter() - start) / (os.cpu_count() or 1)


def _busy() -> float:
    """Seconds of processor time that anyone has used since the machine started, stolen time included."""
    fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _used() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])
