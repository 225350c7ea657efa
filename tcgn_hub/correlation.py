"""Correlations of each column of two tables."""

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


def partial(predicted: np.ndarray, measured: np.ndarray, given: np.ndarray) -> np.ndarray:
    """`pearson` of each gene with a covariate held fixed on both sides: of what a line through it leaves.

    ``predicted``: predictions, shape (spots, genes); ``measured``: measurements, shape (spots, genes); ``given``: the
    covariate, shape (spots,). Returns correlations, float64, shape (genes,); 0 where either is on the line, NaN for
    genes that were not measured.
    """
    line = centred(np.asarray(given, np.float64)[:, None])
    norm = (line**2).sum()
    return pearson(*(_left(centred(values), line, norm) for values in (predicted, measured)))


def _left(values: np.ndarray, line: np.ndarray, norm: float) -> np.ndarray:
    left = values - line * ((line * values).sum(axis=0) / norm) if norm else values
    # what rounding to float32 leaves of a column that is on the line would correlate with anything
    return np.where((left**2).sum(axis=0) < 1e-10 * (values**2).sum(axis=0), 0, left)
