"""What predictions tell of genes apart from depth, and apart from what all of their maps share."""

from __future__ import annotations

import numpy as np

from tcgn_hub.correlation import standardised

_HIGHLY_VARIABLE = 50
_NOTHING_LEFT = 1e-10  # of the variance


def split_axis(predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions as far as one picture explains them all, and what is left, each of shape (n, genes).

    The picture is the first principal component of the predictions, each gene standardised. ``predicted``: shape (n,
    genes); columns with a NaN take no part and stay NaN.
    """
    values = standardised(predicted)
    known = ~np.isnan(values).any(axis=0)
    one = np.full(values.shape, np.nan)
    maps, size, loadings = np.linalg.svd(values[:, known], full_matrices=False)
    one[:, known] = maps[:, :1] * size[:1] @ loadings[:1]
    rest = values - one
    # what rounding leaves would be standardised into a map
    nothing = (rest**2).sum(axis=0) < _NOTHING_LEFT * len(values)
    return one, np.where(nothing, 0, rest)


def highest(values: np.ndarray, number: int = _HIGHLY_VARIABLE) -> np.ndarray:
    """Columns of the ``number`` highest values, NaN left out, the highest first."""
    order = np.argsort(-values, kind="stable")
    return order[~np.isnan(values[order])][:number]
