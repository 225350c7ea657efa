"""Where to compute, and in what: one rule for all of the package."""

from __future__ import annotations

import math
import os
import platform
from functools import cache
from pathlib import Path

from tcgn_hub.errors import DeviceError

_CPU_INFO = Path("/proc/cpuinfo")
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # products in bfloat16, as Linux names them on x86 and on ARM


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


def pick_precision(precision: str = "auto", device: str = "auto") -> str:
    """The precision asked for; if 'auto', bfloat16 where the device multiplies in it, and float32 elsewhere.

    PyTorch is imported where the device may be CUDA, and not for the CPU.
    """
    if precision != "auto":
        return precision
    device = pick_device() if device == "auto" else device
    if device.startswith("cuda"):
        import torch

        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    # of MPS and others it cannot be asked
    return "bfloat16" if device == "cpu" and cpu_has_bfloat16() else "float32"


@cache
def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16; where it does not, that is emulated, and slower than float32."""
    try:
        return bool(_BFLOAT16.intersection(_CPU_INFO.read_text(errors="replace").split()))
    except OSError:
        return _told_by_torch()


def _told_by_torch() -> bool:
    """The same of a system without a file that says it; False by a PyTorch that cannot be asked."""
    import torch

    try:
        stated = torch.cpu.get_capabilities()
    except (AttributeError, RuntimeError):
        return False
    return bool(stated.get("avx512_bf16") or stated.get("amx_bf16"))


@cache
def processor() -> str:
    """What tells this processor from those that cannot run its programs: its name and what it can do."""
    try:
        lines = _CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return f"{platform.system()} {platform.machine()} {platform.processor()}"
    told = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(told)))


def free_memory(device: str) -> float:
    """Bytes that are free on a device; infinity where it cannot be asked."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info(device)[0])
    try:
        stated = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * float(stated["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return math.inf


def keep_freed_memory() -> None:
    """Let this process keep the memory of a tensor that is gone for the next one, up to 512 MB.

    By default glibc gives much of it back, and under Dask, which sets MALLOC_TRIM_THRESHOLD_, all of it, to ask for it
    again, page by page, an instant later. Where the C library is another one nothing is done.
    """
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # as malloc.h has them
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_threshold, 32 << 20)  # the most that is allowed
    mallopt(trim_threshold, 512 << 20)


def usable_cores() -> int:
    """Cores that this process may use."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1
