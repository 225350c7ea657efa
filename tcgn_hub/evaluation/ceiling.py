"""How well a perfect prediction could agree with counts as noisy as these."""

from __future__ import annotations

import numpy as np

from tcgn_hub.correlation import pearson
from tcgn_hub.evaluation.significance import residuals
from tcgn_hub.units import depth


def noise_ceiling(counts: np.ndarray, *, given_depth: bool = False, repeats: int = 10, seed: int = 0) -> np.ndarray:
    """Correlation with the measurement that a perfect prediction could reach, gene by gene.

    Few molecules of a gene are counted in a spot, and chance decides which. Each repeat splits the counts binomially
    into halves, which are independent measurements where counts are Poisson, and correlates the halves after the
    normalisation of the targets, ``log10(1 + 10^4 count / sum of the panel's counts)``. The mean correlation r over
    repeats gives the reliability of all counts together, 2r / (1 + r) (Spearman 1910, Brown 1910), and its root the
    correlation with the truth.

    Both halves share the spot's number of molecules, which the logarithm and the zeros bring into the targets. The
    ceiling is therefore that of a prediction that knows this number too, of which an image tells a part. Where a spot
    has ten molecules a gene, that hardly matters; with two or three it does: counts drawn with the totals of six
    sections of her2st, but without any difference of expression between spots, have a median of 0.26 to 0.46, and the
    real counts 0.46 to 0.54.

    ``counts``: raw counts of the panel's genes, shape (n, genes); NaN in the columns of genes not measured;
    ``given_depth``: whether to hold the log depth of each half fixed, for the ceiling of a correlation given depth;
    ``repeats``: number of random halvings; ``seed``: seed of the halvings. Returns correlations from 0 to 1, float64,
    shape (genes,); 0 where the halves do not correlate, NaN for genes not measured, and for all genes if counts are no
    whole numbers, which cannot be halved, or if at most one spot has counts in both halves.
    """
    unknown = np.full(counts.shape[1], np.nan)
    measured = ~np.isnan(counts).all(axis=0)
    whole = counts[:, measured]
    if ((whole != np.rint(whole)) | (whole < 0)).any():
        return unknown
    whole = whole.astype(np.int64)
    rng = np.random.default_rng(seed)
    correlations = []
    for _ in range(repeats):
        half = rng.binomial(whole, 0.5)
        halves = [half, whole - half]
        counted = halves[0].any(axis=1) & halves[1].any(axis=1)
        if counted.sum() < 2:
            return unknown
        first, second = (_values(part[counted], given_depth) for part in halves)
        correlations.append(pearson(first, second))
    r = np.maximum(np.mean(correlations, axis=0), 0)
    unknown[measured] = np.sqrt(2 * r / (1 + r))
    return unknown


def _values(counts: np.ndarray, given_depth: bool) -> np.ndarray:
    """Targets from counts of which no spot is empty, shape (n, genes)."""
    values = np.log10(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))
    return residuals(values, depth(counts)) if given_depth else values
