"""A forward pass that was compiled ahead of time, and is kept on disk for later processes.

By AOTInductor and not by `torch.compile`: what it makes is one file, which starts without tracing the model again and
without a compiler. It is a program for this processor, these weights and one size of batch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import tcgn_hub.models
from tcgn_hub.devices import processor
from tcgn_hub.errors import DeviceError
from tcgn_hub.files import make_folder
from tcgn_hub.images.transforms import INPUT_PX
from tcgn_hub.text import option
from tcgn_hub.weights.manifest import assets_folder

Pass = Callable[[torch.Tensor], Any]

_TOLERANCE = 0.05  # relative to the largest value, on noise; other edges of equal weight may be chosen
_LONGEST_S = 86_400  # that no compilation takes
_KEPT = 4  # files, of which each holds all weights
_compiling = threading.Lock()


class NoCompilerError(DeviceError):
    """There is no C++ compiler."""


def compiled_path(sha256: str, precision: str, device: torch.device, batch: int) -> Path:
    """Where the forward pass of weights of this checksum is kept."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    threads = torch.get_num_threads()  # loops are divided among as many when they are compiled
    told = sha256, _source(), torch.__version__, device.type, name, threads, precision, batch
    return assets_folder("compiled") / f"{hashlib.sha256(repr(told).encode()).hexdigest()}.pt2"


def _source() -> str:
    """A hash of what the model is written in, for its forward pass may change with the package."""
    files = [Path(__file__).with_name("torch.py"), *Path(next(iter(tcgn_hub.models.__path__))).glob("*.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def read_compiled(path: Path) -> Pass:
    """A forward pass that was kept, which takes float32, shape (batch, 3, 224, 224), channels last.

    Raises:
        DeviceError: It cannot be loaded, and is deleted.
    """
    _import_quietly()
    try:
        run = torch._inductor.aoti_load_package(str(path))
    except Exception as err:
        with suppress(OSError):
            path.unlink()
        raise DeviceError(f"A compiled model cannot be loaded ({_reason(err)}).") from err
    with suppress(OSError):
        os.utime(path)
    return run


def write_compiled(whole: torch.nn.Module, path: Path, device: torch.device, batch: int) -> None:
    """Compile a module for batches of one size, and keep it.

    Raises:
        DeviceError: There is no compiler, or it fails.
        OutputError: The file cannot be written.
    """
    check_compiler()
    from torch._inductor.utils import fresh_inductor_cache  # heavy

    make_folder(path.parent)
    x = torch.zeros(batch, 3, INPUT_PX, INPUT_PX, device=device).contiguous(memory_format=torch.channels_last)
    try:
        with _compiling, tempfile.TemporaryDirectory(dir=path.parent) as folder, torch.no_grad():
            part = Path(folder, path.name)
            program = torch.export.export(whole, (x,))
            # half a gigabyte that PyTorch would leave behind
            with fresh_inductor_cache(dir=folder):
                # frozen weights are folded and laid out for the products that they go into
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(part), inductor_configs={"freezing": True}
                )
            # nothing tells a compiled program that its input is laid out in another way than it takes for granted
            x = torch.randn(x.shape, device=device).contiguous(memory_format=torch.channels_last)
            for said, wanted in zip(read_compiled(part)(x), whole(x), strict=True):
                if not (said - wanted).abs().max() <= _TOLERANCE * wanted.abs().max():
                    raise DeviceError("it gives other values")
            os.replace(part, path)
    except Exception as err:
        raise DeviceError(f"The model cannot be compiled here ({_reason(err)}).") from err
    _forget(path.parent)


def check_compiler() -> None:
    """Refuse a machine without a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    _import_quietly()
    try:
        get_cpp_compiler()
    except Exception as err:
        raise NoCompilerError(
            "The model cannot be compiled here: there is no C++ compiler. Install one, such as g++, or leave"
            f" {option('compile', 'on')} out."
        ) from err


def _import_quietly() -> None:
    """Import what PyTorch will, without its line that there is no GPU where the CUDA toolkit is installed."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.addFilter(_nothing)
    try:
        import_module("torch.utils.cpp_extension")
    finally:
        logger.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _forget(folder: Path) -> None:
    """Delete what was not used for longest, and what was left by processes that were killed."""
    for left in folder.glob("tmp*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _LONGEST_S:
                shutil.rmtree(left)
    with suppress(OSError):
        files = sorted(folder.glob("*.pt2"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files[_KEPT:]:
            file.unlink()


def _reason(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__}: {lines[0]}" if lines else type(err).__name__
