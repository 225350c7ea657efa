"""Agreement of predictions with measured expression, gene by gene, and how sure of it one can be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from tcgn_hub.correlation import centred

# the bootstrap's estimates need some blocks to choose among
_LEAST_BLOCKS = 10
_VALUES_AT_ONCE = 1_000_000  # of float64, 8 MB


def rmse(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Root of the mean squared error of each gene over spots, in the units of the measurements.

    ``predicted``: predictions, shape (spots, genes); ``measured``: measurements in the same units, shape (spots,
    genes). Returns errors, float64, shape (genes,); NaN for genes that were not measured.
    """
    return np.sqrt(np.mean((predicted - measured.astype(np.float64)) ** 2, axis=0))


def nrmse(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """`rmse` of each gene over the standard deviation of its measurements.

    1 is what the section's own mean of the gene reaches, 0 is perfect; a wrong level or scale can make it any worse
    than 1 however well the pattern fits.

    ``predicted``: predictions, shape (spots, genes); ``measured``: measurements in the same units, shape (spots,
    genes). Returns errors without units, float64, shape (genes,); NaN where the measurements are constant or missing.
    """
    spread = np.sqrt((centred(measured) ** 2).mean(axis=0))
    return np.divide(rmse(predicted, measured), spread, out=np.full(len(spread), np.nan), where=spread != 0)


def block_bootstrap(
    xy: np.ndarray, *, repeats: int = 1000, block: int = 3, seed: int | Sequence[int] = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks of spots are drawn in each repeat of a spatial block bootstrap (Künsch 1989).

    Neighbouring spots resemble each other, so that spots drawn one by one would promise more than they know: squares
    of ``block`` x ``block`` spot pitches are drawn with replacement. The pitch is the median distance of a spot to its
    nearest neighbour. Where the squares would be fewer than ten, smaller ones are drawn; where positions are unknown,
    single spots. Structures larger than a block still make the result optimistic: of unrelated Gaussian fields on
    18 x 18 spots, smooth over 1 and 2 pitches (standard deviation of the kernel), 95 % intervals held the truth in 83 %
    and 63 % of cases, and in 55 % and 27 % with single spots.

    ``xy``: spot centres in any unit, shape (n, 2); NaN where unknown; ``repeats``: number of repeats; ``block``: side
    of a block in spot pitches; ``seed``: seed of the draws. Returns block of each spot, int, shape (n,); and how often
    each block is drawn, uint16, shape (repeats, blocks). A spot is drawn ``drawn[:, of_spot]`` times.
    """
    of_spot = _blocks(xy, block)
    blocks = int(of_spot.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = np.empty((repeats, blocks), np.uint16)
    for rows in _parts(repeats, blocks):
        drawn[rows] = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=len(drawn[rows]))
    return of_spot, drawn


def bootstrap_pearson(
    predicted: np.ndarray, measured: np.ndarray, of_spot: np.ndarray, drawn: np.ndarray
) -> np.ndarray:
    """`pearson` in each repeat of `block_bootstrap`.

    ``predicted``: predictions, shape (spots, genes); ``measured``: measurements in the same units, shape (spots,
    genes); ``of_spot``: block of each spot, shape (spots,); ``drawn``: how often each block is drawn, shape (repeats,
    blocks). Returns correlations, float64, shape (repeats, genes); 0 where either is constant, NaN for genes not
    measured.
    """
    order = np.argsort(of_spot, kind="stable")
    first = np.searchsorted(of_spot[order], np.arange(drawn.shape[1]))
    out = np.zeros((len(drawn), measured.shape[1]))
    for genes in _parts(measured.shape[1], len(measured)):
        p, m = _standardised(predicted[order, genes]), _standardised(measured[order, genes])
        # all that a correlation needs of a block
        terms = (np.ones((len(p), 1)), p, m, p**2, m**2, p * m)
        sums = np.concatenate([np.add.reduceat(term, first, axis=0) for term in terms], axis=1)
        for rows in _parts(*drawn.shape):
            total = drawn[rows].astype(np.float64) @ sums
            mean_p, mean_m, square_p, square_m, product = np.split(total[:, 1:] / total[:, :1], 5, axis=1)
            variance_p, variance_m = square_p - mean_p**2, square_m - mean_m**2
            # of a gene that is constant among the drawn spots, rounding leaves about 1e-16; NaN goes on to the quotient
            varies = ~((variance_p < 1e-12) | (variance_m < 1e-12))
            norm = np.sqrt(np.maximum(variance_p, 0) * np.maximum(variance_m, 0))
            np.divide(product - mean_p * mean_m, norm, out=out[rows, genes], where=varies)
    return np.clip(out, -1, 1)


def interval(samples: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of bootstrap samples.

    ``samples``: shape (repeats, ...); ``level``: share of the samples inside. Returns lower and upper end, each of
    shape (...).
    """
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def p_values(pcc: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """One-sided p-values that genes have a correlation above 0.

    Fisher's z of the estimate over the standard deviation of z among the bootstrap samples, against a normal.

    ``pcc``: correlation of each gene, shape (genes,); ``samples``: its bootstrap samples, shape (repeats, genes).
    Returns shape (genes,); 1 where the samples do not vary, NaN where the correlation is NaN.
    """
    error = _fisher_z(samples).std(axis=0, ddof=1)
    z = np.divide(_fisher_z(pcc), error, out=np.full(len(pcc), -np.inf), where=error != 0)
    return np.array([math.erfc(value / math.sqrt(2)) / 2 for value in z])


def benjamini_hochberg(p: np.ndarray, fdr: float = 0.05) -> np.ndarray:
    """Which hypotheses are rejected at a false discovery rate (Benjamini and Hochberg 1995).

    ``p``: p-values, shape (tests,); NaN is no test; ``fdr``: false discovery rate. Returns True where rejected, shape
    (tests,).
    """
    tested = np.sort(p[~np.isnan(p)])
    passed = tested <= fdr * np.arange(1, len(tested) + 1) / max(len(tested), 1)
    return p <= (tested[passed].max() if passed.any() else -1)


def _parts(number: int, values: int) -> Iterator[slice]:
    """Slices of so many rows or columns, of so many values each, of which one is in memory at a time."""
    at_once = max(1, _VALUES_AT_ONCE // max(1, values))
    return (slice(start, start + at_once) for start in range(0, number, at_once))


def _standardised(values: np.ndarray) -> np.ndarray:
    own = centred(values)
    spread = np.sqrt((own**2).mean(axis=0))
    return np.divide(own, spread, out=np.zeros_like(own), where=spread != 0)


def _blocks(xy: np.ndarray, block: int) -> np.ndarray:
    """Number of the block of each spot, from 0 without gaps, shape (n,)."""
    pitch = _pitch(xy)
    if pitch is None:
        return np.arange(len(xy))
    cell = np.floor((xy - xy.min(axis=0)) / pitch)
    while True:
        of_spot = np.unique(cell // block, axis=0, return_inverse=True)[1].ravel()
        if block == 1 or of_spot.max() + 1 >= _LEAST_BLOCKS:
            return of_spot
        block -= 1


def _pitch(xy: np.ndarray) -> float | None:
    """Median distance to the nearest other place of a spot, of some hundred spots; None if there is none."""
    some = xy[np.unique(np.linspace(0, len(xy) - 1, 500).astype(int))]
    nearest = np.empty(len(some))
    for part in _parts(len(some), len(xy)):
        distance = np.hypot(*(some[part, None] - xy).transpose(2, 0, 1))
        nearest[part] = np.where(distance > 0, distance, np.inf).min(axis=1)
    pitch = float(np.median(nearest))
    return pitch if math.isfinite(pitch) and not np.isnan(xy).any() else None


def _fisher_z(pcc: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(pcc, -0.999999, 0.999999))
