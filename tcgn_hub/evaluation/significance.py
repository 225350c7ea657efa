"""Which genes are predicted better than chance, where chance has maps as smooth as the real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tcgn_hub.correlation import centred, pearson, standardised
from tcgn_hub.evaluation.spots import pair_sums, spot_pitch

_LEAST_SPOTS = 4
# null maps pass as often with 0.1 to 0.5, and with 1, which is no correction, more often
_LEAST_SCALE = 0.5
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
    each other correlate by chance the more, the smoother both are, as if there were only the `effective_spots`. The
    quantile of Student's t is turned into that of a normal (Wallace 1959).

    ``predicted``, ``measured``: shape (n, genes); ``xy``: spot centres in any unit, shape (n, 2); spots are taken as
    independent where one is NaN; ``given``: what is held fixed, such as log depth, shape (n,) or (n, k): both sides
    are replaced by their residuals on it, and a spot where it is not finite is left out. Returns a test of which all
    is NaN for genes with a NaN on either side and for fewer than four spots; r is 0 and p is 1 where either side is
    constant or explained by ``given``.
    """
    if given is not None:
        given = given[:, None] if given.ndim == 1 else given
        known = np.isfinite(given).all(axis=1)
        predicted, measured, xy, given = predicted[known], measured[known], xy[known], given[known]
    if len(measured) < _LEAST_SPOTS:
        return SpatialTest(*np.full((4, measured.shape[1]), np.nan))
    if given is not None:
        predicted, measured = residuals(predicted, given), residuals(measured, given)
    r = pearson(predicted, measured)
    effective = effective_spots(predicted, measured, xy, given=given)
    freedom = np.maximum(effective - 2, 0)
    size = np.sqrt(-freedom * np.log1p(-np.minimum(r**2, 1 - 1e-12)))
    z = np.sign(r) * size * (8 * freedom + 1) / (8 * freedom + 3)
    return SpatialTest(r, effective, z, np.where(effective == 0, 1, _upper_tail(z)))


def effective_spots(
    predicted: np.ndarray, measured: np.ndarray, xy: np.ndarray, *, given: np.ndarray | None = None
) -> np.ndarray:
    """Number of independent spots that would correlate by chance as much as these do, 1 + n² / trace(R_p R_m).

    R_p and R_m are the correlations between spots of the prediction and of the measurement, each less its mean (or its
    regression on ``given``). They follow from correlations that depend on the distance alone, in the classes of
    `tcgn_hub.evaluation.spots.pair_sums`, and are 0 beyond. These are estimated without bias: what is left of a smooth
    map of few spots when its mean is taken out is less alike than the map was. Where classes tell little apart, the
    correction is held within a factor of two.

    ``predicted``, ``measured``: residuals on ``given`` if there is any, shape (n, genes); ``xy``: shape (n, 2);
    ``given``: finite, shape (n,) or (n, k). Returns values from 1 to n, shape (genes,); 0 where either is constant, NaN
    where either has a NaN.
    """
    n = len(measured)
    sides = np.concatenate([standardised(predicted), standardised(measured)], axis=1)
    # 0 of a constant column, NaN of one with a gap
    varies = np.prod(np.split(np.round((sides**2).mean(axis=0)), 2), axis=0)
    if (pitch := spot_pitch(xy)) is None:
        return varies * n
    number, sums, traces = pair_sums(sides, xy, pitch, _basis(n, given))
    norm = np.sqrt(np.maximum(number, 1))
    scale, axes = np.linalg.eigh(traces / norm / norm[:, None])
    of_predicted, of_measured = np.split(axes.T @ (sums / norm[:, None]), 2, axis=1)
    trace = (of_predicted * of_measured / np.maximum(scale, _LEAST_SCALE)[:, None]).sum(axis=0)
    return varies * (1 + n**2 / np.maximum(trace, n**2 / (n - 1)))


def residuals(values: np.ndarray, given: np.ndarray) -> np.ndarray:
    """What a linear regression on covariates leaves of each column; exactly 0 where they explain it.

    ``values``: shape (n, columns); ``given``: finite, shape (n,) or (n, k). Returns float64, shape (n, columns).
    """
    own, basis = centred(values), _basis(len(values), given)
    left = own - basis @ (basis.T @ own)
    return np.where((left**2).sum(axis=0) < _NOTHING_LEFT * (own**2).sum(axis=0), 0, left)


def _basis(n: int, given: np.ndarray | None) -> np.ndarray:
    """Orthonormal columns that span a constant and the covariates, shape (n, at most 1 + k)."""
    constant = np.full((n, 1), 1 / math.sqrt(max(n, 1)))
    if given is None:
        return constant
    axes, scale, _ = np.linalg.svd(standardised(given[:, None] if given.ndim == 1 else given), full_matrices=False)
    return np.concatenate([constant, axes[:, scale > 1e-6 * math.sqrt(n)]], axis=1)


def stouffer(tests: Sequence[SpatialTest]) -> np.ndarray:
    """One-sided p-values of the evidence of several sections (Stouffer 1949), weighted by root effective spots.

    Returns shape (genes,). Sections where a gene has no test do not count; 1 where it is constant in all others, NaN
    where there is none.
    """
    z, effective = np.array([test.z for test in tests]), np.array([test.effective for test in tests])
    weight = np.where(np.isnan(z), 0, np.sqrt(np.nan_to_num(effective)))
    norm = np.sqrt((weight**2).sum(axis=0))
    total = np.divide((weight * np.nan_to_num(z)).sum(axis=0), norm, out=np.full(z.shape[1], -np.inf), where=norm > 0)
    return np.where(np.isnan(z).all(axis=0), np.nan, _upper_tail(total))


def benjamini_hochberg(p: np.ndarray, fdr: float = 0.05) -> np.ndarray:
    """Which hypotheses are rejected at a false discovery rate (Benjamini and Hochberg 1995).

    ``p``: p-values, shape (tests,); NaN is no test; ``fdr``: false discovery rate. Returns True where rejected, shape
    (tests,).
    """
    tested = np.sort(p[~np.isnan(p)])
    passed = tested <= fdr * np.arange(1, len(tested) + 1) / max(len(tested), 1)
    return p <= (tested[passed].max() if passed.any() else -1)


def _upper_tail(z: np.ndarray) -> np.ndarray:
    """Probability that a standard normal is above each value, shape (genes,)."""
    return np.array([math.erfc(value / math.sqrt(2)) / 2 for value in z])
