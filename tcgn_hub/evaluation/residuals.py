"""What counts say of a gene beyond how many molecules a spot and a gene have in all."""

from __future__ import annotations

import numpy as np

_THETA = 100.0


def pearson_residuals(counts: np.ndarray) -> np.ndarray:
    """Analytic Pearson residuals (Lause, Berens and Kobak, Genome Biology 22, 258, 2021).

    A count less what is expected of its spot and its gene, over the standard deviation of a negative binomial of theta
    100, clipped to the root of the number of spots.

    ``counts``: raw counts of one section, shape (n, genes); NaN in the columns of genes not measured. Returns float64,
    shape (n, genes); NaN where there are no counts, 0 where nothing is expected.
    """
    known = np.nan_to_num(counts)
    expected = known.sum(axis=1, keepdims=True) * known.sum(axis=0) / max(known.sum(), 1)
    spread = np.sqrt(expected + expected**2 / _THETA)
    residuals = np.divide(known - expected, spread, out=np.zeros(known.shape), where=expected > 0)
    most = np.sqrt(len(counts))
    return np.where(np.isnan(counts), np.nan, np.clip(residuals, -most, most))
