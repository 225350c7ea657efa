"""HDF5 files whose damage would hold up the library that reads them."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from tcgn_hub.extras import require

_MAGIC, _HEAD = b"GCOL", 16
_RATIO = 200  # bytes of a dataset per byte of the file, of what is compressed
_MOST = 1 << 30  # bytes of a file that is searched, which takes a second


def check_heaps(path: Path) -> None:
    """Raise a ValueError if the heap of texts is damaged so that HDF5 would look for its end forever.

    HDF5 steps over the free room of a heap by its stated size, which may be none (seen with 2.0.0).
    """
    with open(path, "rb") as file:
        if not (size := file.seek(0, 2)):
            raise ValueError("it is empty")
        if size > _MOST:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = data.find(_MAGIC)
            while start >= 0:
                if data[start + 4 : start + 8] == b"\1\0\0\0":
                    _check_heap(data, start)
                start = data.find(_MAGIC, start + 4)


def check_sizes(path: Path, *, counts: bool) -> None:
    """Raise a ValueError if what is read, with or without the counts, is announced to be beyond the file."""
    h5py = require("h5py", extra="h5ad", to="read .h5ad files")
    announced = 0

    def add(name: str, item: Any) -> None:
        nonlocal announced
        if isinstance(item, h5py.Dataset) and (counts or name.partition("/")[0] not in ("X", "layers", "raw")):
            announced += item.nbytes

    with h5py.File(path, "r") as file:
        file.visititems(add)
    if announced > max(_MOST, _RATIO * path.stat().st_size):
        raise ValueError(f"it announces {announced:,} bytes, more than it can hold")


def _check_heap(data: mmap.mmap, start: int) -> None:
    end = min(start + int.from_bytes(data[start + 8 : start + _HEAD], "little"), len(data))
    at = start + _HEAD
    while at + _HEAD <= end:
        free = data[at : at + 2] == b"\0\0"
        size = int.from_bytes(data[at + 8 : at + _HEAD], "little")
        if free and size < _HEAD:
            raise ValueError(f"its heap of texts is damaged at byte {at}")
        at += size if free else _HEAD + -(-size // 8) * 8
