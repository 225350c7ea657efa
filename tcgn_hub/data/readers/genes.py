"""Gene names and counts as every reader gives them: symbols without duplicates, raw counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.errors import SectionError

__all__ = ["SUMMED", "are_ensembl", "tidy"]

SUMMED = "genes named twice, summed"
"""What a reader notes in ``left_out`` of the genes whose columns it had to add up."""

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(\.\d+)?")
_LOG_MAX = 30.0  # below 2^30, the logarithm of any expression; above, no logarithm


def are_ensembl(genes: Sequence[str]) -> bool:
    """Whether most names are Ensembl ids."""
    return 2 * sum(_ENSEMBL.fullmatch(gene) is not None for gene in genes) > len(genes)


def tidy(
    counts: Any,
    genes: Sequence[str],
    *,
    rows: Sequence[str],
    source: Path,
    symbols: Sequence[str] | None = None,
    bulk: bool = False,
) -> tuple[list[str], np.ndarray, dict[str, int]]:
    """Counts that are checked, under gene names without duplicates.

    Args:
        counts: Array or sparse matrix, shape (n, genes).
        genes: Names of its columns.
        rows: Names of its rows, for errors.
        source: The file, for errors.
        symbols: Symbols of the columns, which take the place of Ensembl ids; an empty one leaves the id.
        bulk: Whether the values are those of bulk RNA-seq, which are not counts if given as TPM.

    Returns:
        Gene names, in the order of their first column, Ensembl ids without their version; counts, float32, shape
        (n, gene names), where columns of one name are summed; and what to note of that in ``left_out``.

    Raises:
        SectionError: A count is not a number, infinite or negative, or the counts are logged or normalised.
    """
    if symbols is not None and are_ensembl(genes):
        genes = [symbol or gene for symbol, gene in zip(symbols, genes, strict=True)]
    genes = [match[1] if (match := _ENSEMBL.fullmatch(gene)) else gene for gene in genes]
    dense = np.asarray(counts.toarray() if hasattr(counts, "toarray") else counts).astype(np.float32, copy=False)
    _check(dense, genes, rows, source, bulk=bulk)
    column: dict[str, int] = {}
    first = np.array([column.setdefault(gene, i) == i for i, gene in enumerate(genes)], bool)
    if first.all():
        return list(genes), dense, {}
    summed = dense[:, first]
    place = {gene: i for i, gene in enumerate(column)}
    again = np.flatnonzero(~first)
    for i in again:
        summed[:, place[genes[i]]] += dense[:, i]
    return list(column), summed, {SUMMED: len({genes[i] for i in again})}


def _check(counts: np.ndarray, genes: Sequence[str], rows: Sequence[str], source: Path, *, bulk: bool) -> None:
    for bad, what in ((~np.isfinite(counts), "not a finite number"), (counts < 0, "negative")):
        if bad.any():
            row, column = divmod(int(bad.argmax()), bad.shape[1])
            raise SectionError(
                f"{source}: the count of {genes[column]} in {rows[row]} is {what} ({counts[row, column]:g}); give raw"
                " counts."
            )
    some = counts[counts != 0]
    share = float((np.abs(some - np.round(some)) > 1e-3).mean()) if len(some) else 0.0
    if bulk and share > 0.01 and some.max() < _LOG_MAX:
        raise SectionError(
            f"{source}: the expression of {rows[0]} looks logged (no value is above {some.max():.3g}); give counts or"
            " TPM that are not."
        )
    if not bulk and share > 0.01:
        raise SectionError(
            f"{source}: counts look normalised or logged ({share:.0%} of those above zero are no integers); give raw"
            " counts."
        )
