"""Results as .h5ad."""

from __future__ import annotations

import io
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from tcgn_hub.devices import usable_cores
from tcgn_hub.extras import require
from tcgn_hub.files import writing
from tcgn_hub.result import Result, writer
from tcgn_hub.writing.tables import rows_of

_CHUNK_BYTES = 1 << 20
_MOST_THREADS = 8
ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
"""What anndata knows an array by."""


@writer(".h5ad", needs="anndata", extra="h5ad")
def write_h5ad(path: Path, result: Result) -> None:
    """Write what `Result.to_anndata` gives, its tables some rows at a time."""
    write_elem = require("anndata.io", extra="h5ad", to="write .h5ad files").write_elem
    h5py = require("h5py", extra="h5ad", to="write .h5ad files")
    with writing(path) as part, open(part, "w+b") as handle:
        target = _Patient(handle)
        with h5py.File(target, "w") as file:
            write_elem(file, "/", result.annotations(copy=False), dataset_kwargs={"compression": "gzip"})
            for place, table in result.tables().items():
                _write_table(file, place, table, result, target)
        target.check()


class _Patient(io.RawIOBase):
    """A file that takes whatever comes after an error, which `check` raises.

    HDF5 ends the process if it cannot write all that it has, when a file is closed as well.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._error: OSError | None = None
        self._at = self._end = 0

    def check(self) -> None:
        """Raise what went wrong."""
        self._tried(self._file.flush)
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (self._end if whence == os.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, content: Any) -> int:
        self._tried(self._file.seek, self._at)
        return self._tried(self._file.readinto, content) or 0  # type: ignore[attr-defined]

    def write(self, content: Any) -> int:
        size = memoryview(content).nbytes
        self._tried(self._file.seek, self._at)
        self._tried(self._file.write, content)
        self._at += size
        self._end = max(self._end, self._at)
        return size

    def truncate(self, size: int | None = None) -> int:
        self._end = self._at if size is None else size
        self._tried(self._file.truncate, self._end)
        return self._end

    def flush(self) -> None:
        self._tried(self._file.flush)

    def _tried(self, call: Callable[..., Any], *args: Any) -> Any:
        if self._error is None:
            try:
                return call(*args)
            except OSError as err:
                self._error = err
        return None


def _write_table(file: Any, place: str, table: Callable[[slice], np.ndarray], result: Result, target: _Patient) -> None:
    """A table at its place, compressed by several cores, where HDF5 would take one."""
    kind = table(slice(0))
    row_bytes = kind.dtype.itemsize * int(np.prod(kind.shape[1:]))
    rows = max(1, min(len(result), _CHUNK_BYTES // max(row_bytes, 1)))
    shape = len(result), *kind.shape[1:]
    if 0 in shape:
        file.create_dataset(place, shape, kind.dtype).attrs.update(ARRAY)
        return
    options = {"chunks": (rows, *kind.shape[1:]), "compression": "gzip", "shuffle": True}
    dataset = file.create_dataset(place, shape, kind.dtype, **options)
    dataset.attrs.update(ARRAY)
    nowhere = (0,) * (len(shape) - 1)
    for start, chunk in _in_turn(table, result, rows):
        dataset.id.write_direct_chunk((start, *nowhere), chunk)
        target.check()


def _in_turn(table: Callable[[slice], np.ndarray], result: Result, rows: int) -> Iterator[tuple[int, bytes]]:
    """The chunks of a table in their order, by their first row, some of which are made ahead."""
    threads = min(_MOST_THREADS, usable_cores())
    waiting: deque[tuple[int, Future[bytes]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for part in rows_of(result, rows):
            waiting.append((part.start, pool.submit(_packed, table(part), rows)))
            if len(waiting) > 2 * threads:
                start, chunk = waiting.popleft()
                yield start, chunk.result()
        while waiting:
            start, chunk = waiting.popleft()
            yield start, chunk.result()


def _packed(values: np.ndarray, rows: int) -> bytes:
    """A chunk of so many rows as the filters shuffle and gzip of HDF5 hold it.

    What is predicted has no repetitions but runs, in the bytes of the exponents: to look for those alone is several
    times as fast, and smaller.
    """
    content = np.zeros((rows, *values.shape[1:]), values.dtype)
    content[: len(values)] = values
    planes = np.ascontiguousarray(content.reshape(-1).view(np.uint8).reshape(-1, values.dtype.itemsize).T)
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 8, zlib.Z_RLE)
    return packer.compress(planes.data) + packer.flush()
