"""Correlations of each column of two tables, and between the columns of one."""

from __future__ import annotations

import numpy as np


def pearson(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Pearson correlation (PCC) of each gene over spots, 0 where either is constant.

    ``predicted``: predictions, shape (spots, genes); ``measured``: measurements in the same units, shape (spots,
    genes). Returns correlations, float64, shape (genes,); NaN for genes that were not measured, whose column is NaN.
    """
    p, m = centred(predicted), centred(measured)
    norm = np.sqrt((p**2).sum(axis=0) * (m**2).sum(axis=0))
    return np.divide((p * m).sum(axis=0), norm, out=np.zeros(p.shape[1]), where=norm != 0)


def spearman(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Spearman correlation of each gene over spots: `pearson` of the ranks, ties given their average rank.

    ``predicted``: predictions, shape (spots, genes); ``measured``: measurements, shape (spots, genes). Returns
    correlations, float64, shape (genes,); 0 where either is constant, NaN for genes that were not measured.
    """
    return pearson(_ranks(predicted), _ranks(measured))


def centred(values: np.ndarray) -> np.ndarray:
    """Columns less their mean, float64; a constant column gives zeros, where rounding of the mean might not."""
    centred = values - values.mean(axis=0, dtype=np.float64)
    return np.where(np.ptp(values, axis=0) == 0, 0, centred)


def standardised(values: np.ndarray) -> np.ndarray:
    """Columns less their mean over their standard deviation, float64; a constant column gives zeros."""
    own = centred(values)
    spread = np.sqrt((own**2).mean(axis=0))
    return np.divide(own, spread, out=np.zeros_like(own), where=spread != 0)


def effective_rank(values: np.ndarray) -> float:
    """How many different pictures the columns are worth (Roy and Vetterli, EUSIPCO 2007).

    The exponential of the entropy of the squared singular values of the standardised columns: 1 if all are one picture,
    their number if none has to do with another. ``values``: shape (n, genes); columns with a NaN and constant ones do
    not count. NaN if none is left.
    """
    own = standardised(values)
    share = np.linalg.svd(own[:, ~np.isnan(own).any(axis=0)], compute_uv=False) ** 2
    total = share.sum()
    if not total > 0:
        return float("nan")
    share = share[share > 1e-12 * total] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks within each column, from 0, the average of them for ties; NaN stays NaN."""
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    place = np.arange(len(values))[:, None]
    edge = np.ones((len(values) + 1, values.shape[1]), dtype=bool)
    edge[1:-1] = ordered[1:] != ordered[:-1]
    first = np.maximum.accumulate(np.where(edge[:-1], place, 0), axis=0)
    last = np.minimum.accumulate(np.where(edge[1:], place, len(values))[::-1], axis=0)[::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, axis=0)
    return np.where(np.isnan(values), np.nan, ranks)


def column_means(values: np.ndarray, empty: float) -> np.ndarray:
    """Mean of each column without its NaN, float64; ``empty`` of a column that has nothing else."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=0, dtype=np.float64)
    return np.divide(total, known.sum(axis=0), out=np.full(values.shape[1], empty, np.float64), where=known.any(axis=0))
