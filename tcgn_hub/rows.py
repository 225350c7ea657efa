"""Tables of many rows: kept on disk where they are large, and gone through some rows at a time."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tcgn_hub.errors import OutputError

AT_ONCE = 1024
"""Rows that are looked at together."""

IN_MEMORY = 64 << 20
"""Bytes up to which a table is kept in memory."""


class _Pages(mmap.mmap):
    """A file in memory whose pages may be forgotten: they are shared with the file, which keeps what is written."""


class Table:
    """A table of float32, 0 where nothing was put.

    A large one is a file without a name, in the folder ``beside`` or else in that of temporary files, which is gone
    when the last array of it is, also if the process is killed. Rows are written to the file and not to memory, so
    that a full disk is an error and does not end the process.

    Attributes:
        array: The rows, to read and, once all are put, to change.
    """

    def __init__(self, shape: tuple[int, ...], *, beside: Path | None = None) -> None:
        size = 4 * math.prod(shape)
        self._file = None
        self._folder = Path(tempfile.gettempdir()) if beside is None else beside
        if size <= IN_MEMORY:
            self.array = np.zeros(shape, np.float32)
            return
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it lasts as long as the table
            self._file.truncate(size)
            pages = _Pages(self._file.fileno(), size)
        except OSError as err:
            raise self._full(err) from err
        self.array = np.ndarray(shape, np.float32, buffer=pages)

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Set rows of an ascending index."""
        if self._file is None:
            self.array[rows] = values
            return
        try:
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                if len(run):
                    self._file.seek(int(rows[run[0]]) * self.array[0].nbytes)
                    self._file.write(np.ascontiguousarray(values[run[0] : run[-1] + 1], np.float32).data)
            self._file.flush()
        except OSError as err:
            raise self._full(err) from err

    def keep(self, rows: np.ndarray) -> np.ndarray:
        """The rows of an ascending index, moved to the front of the same place."""
        if len(rows) < len(self.array):
            for start in range(0, len(rows), AT_ONCE):
                part = rows[start : start + AT_ONCE]
                self.put(np.arange(start, start + len(part)), self.array[part])
                forget(self.array)
        return self.array[: len(rows)]

    def _full(self, err: OSError) -> OutputError:
        return OutputError(f"{self._folder} cannot hold what is predicted ({err.strerror or err}).")


def forget(*arrays: np.ndarray) -> None:
    """Give back the memory of what was read of tables on disk; other arrays stay as they are."""
    for array in arrays:
        pages = _pages_of(array)
        if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of a table, some at a time."""
    for start in range(0, len(array), AT_ONCE):
        yield array[start : start + AT_ONCE]
        forget(array)


def take_columns(array: np.ndarray, columns: list[int]) -> np.ndarray:
    """Some columns of a table, on disk if it is and they are many."""
    if _pages_of(array) is None:
        return array[:, columns]
    table, start = Table((len(array), len(columns))), 0
    for part in blocks(array):
        table.put(np.arange(start, start + len(part)), part[:, columns])
        start += len(part)
    return table.array


def _pages_of(array: np.ndarray) -> _Pages | None:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, _Pages) else None
