"""The units of targets and predictions, and the one definition of a mean over patches."""

from __future__ import annotations

import math

import numpy as np

UNITS = "log10(1 + 10^4 count / sum of the panel's counts)"
"""Units of the targets (Xiao et al. 2024), and so of what a trained model predicts; never below 0."""


def to_linear(values: np.ndarray) -> np.ndarray:
    """Values in `UNITS` as ``10^4 count / sum of the panel's counts``, float64."""
    return np.expm1(np.asarray(values, np.float64) * math.log(10))


def from_linear(values: np.ndarray) -> np.ndarray:
    """What `to_linear` gave, in `UNITS` again."""
    return np.log1p(values) / math.log(10)


def depth(counts: np.ndarray) -> np.ndarray:
    """log10 of 1 + the sum of the panel's counts of each spot, shape (n,); NaN of a spot without any.

    ``counts``: raw counts, shape (n, genes), NaN where a gene was not measured.
    """
    total = np.nansum(counts, axis=1)
    return np.where(total > 0, np.log10(1 + total), np.nan)


def mean_in_linear(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean of values in `UNITS`, taken of the counts and not of their logarithms, as a bulk measurement takes it.

    Every patch weighs the same, however many counts it would have had.
    """
    return from_linear(to_linear(values).mean(axis=axis))
