"""What accelerators can do: matrix products a second, memory, and the share of the former that training reaches.

Peaks are of dense bf16 products with float32 sums, as makers print them (twice as much "with sparsity" is no use
here). Memory is 10^9 bytes times the number in the name, a little less than what the chip has. The share of the peak
that a training step reaches ("model FLOPs utilisation", PaLM, Chowdhery et al. 2022, appendix B) is below what others
have published for networks of these sizes; of this code nobody has measured it on such chips.
"""

from __future__ import annotations

from dataclasses import dataclass

from kiloq.core.errors import UsageError
from kiloq.core.recipe import nearest

# Published: llm-foundry's benchmark page has 64 % at 7B, 60 % at 13B and at 1B, sequences of 2,048, 8 A100 of 80 GB.
# A quarter less: those are single nodes, and its kernels are tuned.
AMPERE = 0.45
# Published: torchtitan 33-39 % for 8B on 8-128 H100 (202412 report), llm-foundry 42-46 % at 1-7B. The low end.
HOPPER = 0.35
OTHERS = 0.30  # ours: no figure for networks like this one is known
USABLE = 0.9  # of the memory. Ours: the rest is the driver's, the collectives' buffers and gaps between blocks


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator."""

    name: str
    peak: float  # floating-point operations a second: bf16 products, dense
    memory_bytes: float
    utilisation: float  # the share of the peak that a step is assumed to reach
    source: str  # of the peak and the memory

    @property
    def usable_bytes(self) -> float:
        return USABLE * self.memory_bytes


def _device(name: str, tera: float, gigabytes: float, utilisation: float, source: str) -> Device:
    return Device(
        name=name, peak=tera * 1e12, memory_bytes=gigabytes * 1e9, utilisation=utilisation, source=source
    )  # fmt: skip


DEVICES = {
    device.name: device
    for device in (
        _device("a100-40", 312, 40, AMPERE, "NVIDIA A100 data sheet"),
        _device("a100-80", 312, 80, AMPERE, "NVIDIA A100 data sheet"),
        _device("h100", 989, 80, HOPPER, "NVIDIA H100 data sheet, SXM"),
        _device("h200", 989, 141, HOPPER, "NVIDIA H200 data sheet, SXM"),
        _device("b200", 2_250, 180, OTHERS, "NVIDIA HGX B200 data sheet"),
        _device("mi300x", 1_307, 192, OTHERS, "AMD MI300X data sheet"),
        _device("l40s", 362, 48, OTHERS, "NVIDIA L40S data sheet"),
        _device("a10", 125, 24, OTHERS, "NVIDIA A10 data sheet"),
        _device("rtx-3090", 71, 24, OTHERS, "NVIDIA GA102 white paper"),
        _device("rtx-4090", 165.2, 24, OTHERS, "NVIDIA Ada white paper"),
    )
}


def device_named(name: str) -> Device:
    """A device of the table. Raises UsageError for another name."""
    found = DEVICES.get(name.lower().replace("_", "-").replace(" ", "-"))
    if found is None:
        raise UsageError(
            f"--gpu {name!r:.40} is not known: {nearest(name.lower(), DEVICES)}, or give --peak and --memory of your own"
        )
    return found


def own_device(peak_tera: float, gigabytes: float) -> Device:
    """A device by its numbers: 10^12 operations a second, and 10^9 bytes."""
    for name, value in (("--peak", peak_tera), ("--memory", gigabytes)):
        if not 0 < value < 1e9:
            raise UsageError(f"{name} is {value}: give a number above 0")
    return _device("your device", peak_tera, gigabytes, OTHERS, "as given")
