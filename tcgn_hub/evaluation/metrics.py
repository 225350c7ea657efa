"""Errors of predictions of measured expression, gene by gene."""

from __future__ import annotations

import numpy as np

from tcgn_hub.correlation import centred


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
