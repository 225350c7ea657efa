"""Which genes are predicted better than chance, where chance has maps as smooth as the real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tcgn_hub.correlation import centred, pearson, standardised
from tcgn_hub.evaluation.spots import correlograms, spot_pitch

_CLASSES = 13
_LEAST_SPOTS = 4
# of the variance: what rounding of float32 leaves of a column that the covariates explain
_NOTHING_LEFT = 1e-10


@dataclass(frozen=True)
class SpatialTest:
    """Correlation of each gene over the spots of a section, and the evidence that it is above 0, each (genes,).

    ``r``: correlation; ``effective``: number of independent spots that would say as much, 0 where a column is
    constant; ``z``: the evidence as a standard normal; ``p``: one-sided p-value.
    """

    r: np.ndarray
    effective: np.ndarray
    z: np.ndarray
    p: np.ndarray


def spatial_test(
    predicted: np.ndarray, measured: np.ndarray, xy: np.ndarray, *, given: np.ndarray | None = None
) -> SpatialTest:
    """Test of each gene's correlation that allows for neighbouring spots being alike.

    The modified t-test (Clifford, Richardson and Hémon 1989; Dutilleul 1993): two maps that have nothing to do with
    each other correlate by chance the more, the smoother both are, as if there were only 1 + n² / trace(R_p R_m) spots.
    R_p and R_m, the correlations of the prediction and of the measurement between spots, come from their
    `tcgn_hub.evaluation.spots.correlograms` up to 12.5 spot pitches, and are 0 beyond. The quantile of Student's t is
    turned into that of a normal by Wallace (1959, equation 4.1), which is right to 0.002 of p from 3 degrees of
    freedom on.

    ``predicted``, ``measured``: shape (n, genes); ``xy``: spot centres in any unit, shape (n, 2); spots are taken as
    independent where one is NaN; ``given``: what is held fixed, such as log depth, shape (n,) or (n, k): both sides
    are replaced by their residuals on it, and a spot where it is not finite is left out. Returns a test of which all
    is NaN for genes with a NaN on either side and for fewer than four spots; r is 0 and p is 1 where either side is
    constant or explained by ``given``.
    """
    predicted, measured = predicted.astype(np.float64), measured.astype(np.float64)
    degrees = 2
    if given is not None:
        given = given.reshape(len(given), -1).astype(np.float64)
        known = np.isfinite(given).all(axis=1)
        predicted, measured, xy, given = predicted[known], measured[known], xy[known], given[known]
        degrees += given.shape[1]
    n = len(measured)
    if n < _LEAST_SPOTS:
        return SpatialTest(*np.full((4, measured.shape[1]), np.nan))
    if given is not None:
        predicted, measured = residuals(predicted, given), residuals(measured, given)
    r = pearson(predicted, measured)
    effective = effective_spots(predicted, measured, xy)
    freedom = np.maximum(effective - degrees, 0)
    size = np.sqrt(-freedom * np.log1p(-np.minimum(r**2, 1 - 1e-12)))
    z = np.sign(r) * size * (8 * freedom + 1) / (8 * freedom + 3)
    return SpatialTest(r, effective, z, np.where(effective == 0, 1, upper_tail(z)))


def effective_spots(predicted: np.ndarray, measured: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Number of independent spots of each gene, see `spatial_test`.

    ``predicted``, ``measured``: shape (n, genes); ``xy``: shape (n, 2). Returns values from 1 to n, shape (genes,); 0
    where either is constant, NaN where either has a NaN.
    """
    n = len(measured)
    sides = [standardised(predicted), standardised(measured)]
    # 0 of a constant column, NaN of one with a gap
    known = (sides[0] ** 2).mean(axis=0) * (sides[1] ** 2).mean(axis=0)
    if (pitch := spot_pitch(xy)) is None:
        return np.round(known) * n
    pairs, alike = correlograms(np.concatenate(sides, axis=1), xy, pitch, _CLASSES)
    of_predicted, of_measured = np.split(alike, 2, axis=1)
    trace = n + 2 * (pairs[:, None] * of_predicted * of_measured).sum(axis=0)
    return np.round(known) * (1 + n**2 / np.maximum(trace, n**2 / (n - 1)))


def residuals(values: np.ndarray, given: np.ndarray) -> np.ndarray:
    """What a linear regression on covariates leaves of each column; exactly 0 where they explain it.

    ``values``: shape (n, genes); ``given``: finite, shape (n,) or (n, k). Returns float64, shape (n, genes).
    """
    own = centred(values)
    basis, scale, _ = np.linalg.svd(centred(given.reshape(len(given), -1).astype(np.float64)), full_matrices=False)
    basis = basis[:, scale > 1e-9 * max(scale.max(initial=0), np.finfo(float).tiny)]
    left = own - basis @ (basis.T @ own)
    explained = (left**2).sum(axis=0) < _NOTHING_LEFT * (own**2).sum(axis=0)
    return np.where(explained, 0, left)


def stouffer(tests: Sequence[SpatialTest]) -> np.ndarray:
    """One-sided p-values of the evidence of several sections (Stouffer 1949), weighted by root effective spots.

    Returns shape (genes,). Sections where a gene has no test do not count; 1 where it is constant in all others, NaN
    where there is none.
    """
    z, effective = np.array([test.z for test in tests]), np.array([test.effective for test in tests])
    weight = np.sqrt(np.nan_to_num(effective))
    norm = np.sqrt((weight**2).sum(axis=0))
    total = np.divide((weight * np.nan_to_num(z)).sum(axis=0), norm, out=np.full(z.shape[1], -np.inf), where=norm > 0)
    return np.where(np.isnan(z).all(axis=0), np.nan, upper_tail(total))


def benjamini_hochberg(p: np.ndarray, fdr: float = 0.05) -> np.ndarray:
    """Which hypotheses are rejected at a false discovery rate (Benjamini and Hochberg 1995).

    ``p``: p-values, shape (tests,); NaN is no test; ``fdr``: false discovery rate. Returns True where rejected, shape
    (tests,).
    """
    tested = np.sort(p[~np.isnan(p)])
    passed = tested <= fdr * np.arange(1, len(tested) + 1) / max(len(tested), 1)
    return p <= (tested[passed].max() if passed.any() else -1)


def upper_tail(z: np.ndarray) -> np.ndarray:
    """Probability that a standard normal is above each value, shape (genes,)."""
    return np.array([math.erfc(value / math.sqrt(2)) / 2 for value in z])
