"""Tables as text, with commas, tabs or semicolons, plain or gzip, and errors that say which file and why."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from tcgn_hub.errors import ImageError, SectionError
from tcgn_hub.images.scale import given_scale

# what reading text, and decompressing it, may raise
_UNREADABLE = (OSError, EOFError, ValueError, csv.Error, zlib.error)
_COMMA = re.compile(r"\s*([-+]?\d*),(\d+(?:[eE][-+]?\d+)?)\s*")


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A text file, decompressed if its name ends in .gz."""
    try:
        with (
            gzip.open(path, "rt", newline="", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else open(path, newline="", encoding="utf-8-sig")
        ) as handle:
            yield handle
    except SectionError:
        raise
    except _UNREADABLE as err:
        raise SectionError(f"{path} cannot be read as a table ({err}).") from err


@contextmanager
def open_table(path: Path) -> Iterator[Iterator[list[str]]]:
    """The lines of a table that are not empty."""
    with open_text(path) as handle:
        first = handle.readline()
        delimiter = "\t" if "\t" in first else max(",;", key=first.count)
        handle.seek(0)
        rows = (row for row in csv.reader(handle, delimiter=delimiter) if row)
        # where a comma is the decimal point, as spreadsheets of half of Europe have it, semicolons part the columns
        yield (
            ([_COMMA.sub(r"\1.\2", cell) if _COMMA.fullmatch(cell) else cell for cell in row] for row in rows)
            if (delimiter == ";")
            else rows
        )


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a table, none if it is empty."""
    with open_table(path) as rows:
        return [name.strip() for name in next(rows, [])]


def read_rows(path: Path) -> list[dict[str, str]]:
    """A table of few columns; values without the blanks around them, and empty where a row is short."""
    with open_table(path) as rows:
        header = [name.strip() for name in next(rows, [])]
        found = [{name: row[i].strip() if i < len(row) else "" for i, name in enumerate(header)} for row in rows]
    if not found:
        raise SectionError(f"{path} has no rows.")
    return found


def number(row: dict[str, str], column: str, path: Path) -> float | None:
    """A number of a table's row, None if there is no such column or it is empty."""
    value = row.get(column, "")
    if not value:
        return None
    try:
        return float(value)
    except ValueError as err:
        raise SectionError(f"{path} has '{value}' in its column {column}, which is not a number.") from err


def mpp_in(row: dict[str, str], path: Path) -> float | None:
    """Micrometres per pixel in the column mpp of a table's row, None if there is no such column or it is empty."""
    mpp = number(row, "mpp", path)
    try:
        given_scale(mpp, None)
    except ImageError as err:
        raise SectionError(f"{path}, column mpp: {err}") from err
    return mpp


def read_matrix(path: Path, labels: int = 1) -> tuple[list[list[str]], list[str], np.ndarray]:
    """A table of numbers whose rows begin with labels.

    ``path``: the file; ``labels``: columns before the numbers. Returns the labels of each row; the names of the columns
    of numbers, which R may have written without those of the labels; and the numbers, float32, shape (rows, columns).
    """
    names: list[list[str]] = []
    values: list[np.ndarray] = []
    with open_table(path) as rows:
        header = next(rows, [])
        for row in rows:
            short = len(row) - len(header)
            if short not in (0, labels) or (values and len(row) - labels != len(values[0])):
                raise SectionError(f"Row {row[0]:.60} of {path} has {len(row)} cells, but its header {len(header)}.")
            names.append([cell.strip() for cell in row[:labels]])
            try:
                values.append(np.array(row[labels:], dtype=np.float32))
            except ValueError as err:
                raise SectionError(f"Row {row[0]:.60} of {path} has a value that is not a number ({err}).") from err
    if not values or not len(values[0]):
        raise SectionError(f"{path} has no rows of numbers.")
    twice = [name for name, count in Counter(row[0] for row in names).items() if count > 1]
    if twice:
        raise SectionError(f"{path} has more than one row of {twice[0]}; give each spot or slide one row.")
    columns = [name.strip() for name in header[len(header) - len(values[0]) :]]
    return names, columns, np.stack(values)
