"""Gene names and counts as every reader gives them: symbols without duplicates, raw counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.errors import SectionError
from tcgn_hub.extras import require

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
) -> tuple[list[str], Any, dict[str, int]]:
    """Counts that are checked, under gene names without duplicates.

    ``counts``: array or sparse matrix, shape (n, genes); ``genes``: names of its columns; ``rows``: names of its rows,
    for errors; ``source``: the file, for errors; ``symbols``: symbols of the columns, which take the place of Ensembl
    ids; an empty one leaves the id; ``bulk``: whether the values are those of bulk RNA-seq, which are not counts if
    given as TPM. Returns gene names, in the order of their first column, Ensembl ids without their version; counts,
    float32, shape (n, gene names), an array or, of a sparse matrix, a CSR matrix, where columns of one name are summed;
    and what to note of that in ``left_out``.
    """
    if symbols is not None and are_ensembl(genes):
        genes = [symbol or gene for symbol, gene in zip(symbols, genes, strict=True)]
    genes = [match[1] if (match := _ENSEMBL.fullmatch(gene)) else gene for gene in genes]
    sparse = require("scipy.sparse", extra="h5ad", to="read sparse counts") if hasattr(counts, "tocsr") else None
    counts = sparse.csr_matrix(counts, dtype=np.float32) if sparse else np.asarray(counts, np.float32)
    _check(counts, genes, rows, source, bulk=bulk)
    named = Counter(genes)
    if len(named) == len(genes):
        return list(genes), counts, {}
    place = {gene: i for i, gene in enumerate(named)}
    columns = [place[gene] for gene in genes]
    if sparse:
        ones = np.ones(len(genes), np.float32), (np.arange(len(genes)), columns)
        summed = counts @ sparse.csr_matrix(ones, shape=(len(genes), len(named)))
    else:
        summed = np.zeros((len(counts), len(named)), np.float32)
        np.add.at(summed.T, columns, counts.T)
    return list(named), summed, {SUMMED: sum(number > 1 for number in named.values())}


def _check(counts: Any, genes: Sequence[str], rows: Sequence[str], source: Path, *, bulk: bool) -> None:
    values = counts.data if hasattr(counts, "tocsr") else counts.ravel()
    for bad, what in ((~np.isfinite(values), "not a finite number"), (values < 0, "negative")):
        if bad.any():
            first = int(bad.argmax())
            row, column = divmod(first, len(genes))
            if hasattr(counts, "tocsr"):
                row, column = np.searchsorted(counts.indptr, first, "right") - 1, counts.indices[first]
            raise SectionError(
                f"{source}: the count of {genes[column]} in {rows[row]} is {what} ({values[first]:g}); give raw counts."
            )
    some = values[values != 0]
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
