"""Where to compute: one rule for all of the package."""

from __future__ import annotations

import os

from tcgn_hub.errors import DeviceError


def pick_device(device: str = "auto") -> str:
    """A device that can be used: the one asked for, or CUDA where there is one, and the CPU elsewhere."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as err:
        raise DeviceError(f"Device {device!r} cannot be used here ({str(err).splitlines()[0]}).") from err
    return device


def usable_cores() -> int:
    """Cores that this process may use."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
