"""What a column of yes and no says, however it was written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.errors import SectionError

_SAID = {
    **dict.fromkeys(("1", "true", "t", "yes", "y"), True),
    # what is missing is not said to be so
    **dict.fromkeys(("0", "false", "f", "no", "n", "", "nan", "na", "<na>", "none", "null"), False),
}


def flags(values: Iterable[Any], *, column: str, source: Path) -> np.ndarray:
    """Whether each value says yes, bool, shape (n,); of numbers, booleans and words, and no where one is missing."""
    known: dict[Any, bool] = {}
    return np.array([_flag(value, known, column, source) for value in values], bool)


def _flag(value: Any, known: dict[Any, bool], column: str, source: Path) -> bool:
    if value not in known:
        text = (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).strip().lower()
        try:
            word = f"{float(text):g}"
        except ValueError:
            word = text
        if word not in _SAID:
            raise SectionError(f"{source} has '{value}' in its column {column}, which says neither yes nor no.")
        known[value] = _SAID[word]
    return known[value]


def in_tissue(values: Iterable[Any], *, source: Path) -> np.ndarray:
    """Which spots are in tissue by the column ``in_tissue``, bool, shape (n,); none are not taken for an answer."""
    found = flags(values, column="in_tissue", source=source)
    if len(found) and not found.any():
        raise SectionError(
            f"{source} has no spot in tissue: its column in_tissue is 0 in all {len(found)} rows; correct that column,"
            " or take it out."
        )
    return found
