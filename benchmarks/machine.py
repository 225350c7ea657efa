"""What the benchmarks say of the machine they run on."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def processor_name(device: str) -> str:
    """Of the GPU, or of the CPU."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def usable_cores() -> int:
    """Cores that this process may use."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def progress(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)
