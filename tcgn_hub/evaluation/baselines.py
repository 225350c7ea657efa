"""What simple predictions reach, to compare a model with."""

from __future__ import annotations

import numpy as np

from tcgn_hub.correlation import column_means, pearson
from tcgn_hub.ridge import choose_penalty, predict_ridge

PENALTIES = tuple(10.0 ** np.arange(0, 6.25, 0.5))
"""Weights of the squared coefficients of ridge regression that may be chosen among."""


COLOUR_TEXTURE = 32
"""Numbers of `color_texture_features`."""


def color_texture_features(crops: np.ndarray) -> np.ndarray:
    """Hand-made features of colour and texture, what the baseline sees of a patch.

    ``crops``: RGB crops, uint8, shape (n, 3, size, size). Returns features, float32, shape (n, 32): per channel mean,
    standard deviation, four quantiles, mean and standard deviation of optical density; mean absolute brightness steps
    at 1, 2, 4 and 8 px in both directions.
    """
    x = crops.astype(np.float32) / 255
    density = -np.log(np.clip(x, 1 / 255, 1))
    flat = x.reshape(*x.shape[:2], -1)
    features = [flat.mean(axis=2), flat.std(axis=2), *np.quantile(flat, (0.05, 0.25, 0.75, 0.95), axis=2)]
    features += [density.mean(axis=(2, 3)), density.std(axis=(2, 3))]
    gray = x.mean(axis=1)
    for step in (1, 2, 4, 8):
        n = gray.shape[1] // step
        coarse = gray[:, : n * step, : n * step].reshape(len(gray), n, step, n, step).mean(axis=(2, 4))
        steps = [np.abs(np.diff(coarse, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
        features.append(np.stack(steps, axis=1))
    return np.concatenate(features, axis=1).astype(np.float32)


def ridge_predict(
    train_features: np.ndarray,
    train_targets: np.ndarray,
    test_features: np.ndarray,
    *,
    penalty: float = 30.0,
    parts: np.ndarray | None = None,
) -> np.ndarray:
    """Ridge regression on standardised features, fitted on the training spots only.

    ``train_features``: shape (spots, features); ``train_targets``: shape (spots, genes); NaN where a gene was not
    measured, which is fitted on the other spots; ``test_features``: shape (other spots, features); ``penalty``: weight
    of the squared coefficients; ``parts``: instead of it, the number of the part that each training spot belongs to,
    such as its section, shape (spots,): the penalty is then the one of `PENALTIES` with the highest median PCC where
    each part is predicted from the others, the mean over parts. Returns predictions for the test spots, shape (other
    spots, genes); NaN for genes without a training spot.
    """
    if parts is not None:
        penalty = choose_penalty(train_features, train_targets, parts, PENALTIES, score=_median_pcc)
    return predict_ridge(train_features, train_targets, test_features, (penalty,))[0]


def depth_predict(train_depth: np.ndarray, train_targets: np.ndarray, test_depth: np.ndarray) -> np.ndarray:
    """Regression of each gene on the depth of a spot, fitted on the training spots, applied to that of the test spot.

    No image tells the depth of a spot exactly: this is what a metric gives to whoever guesses how many molecules a spot
    has, and knows of no gene.

    ``train_depth``: log10 of 1 + the panel's counts of each training spot, shape (spots,), NaN where unknown;
    ``train_targets``: shape (spots, genes); ``test_depth``: shape (other spots,). Returns predictions, shape (other
    spots, genes); NaN where the depth is unknown, and for genes without a training spot.
    """
    known = ~np.isnan(train_depth)
    return ridge_predict(train_depth[known, None], train_targets[known], test_depth[:, None], penalty=1e-6)


def mean_predict(train_targets: np.ndarray, spots: int) -> np.ndarray:
    """The mean of each gene over the training spots, for every test spot.

    ``train_targets``: shape (training spots, genes); NaN where a gene was not measured; ``spots``: number of test
    spots. Returns predictions, float64, shape (spots, genes); NaN for genes without a training spot.
    """
    return np.tile(column_means(train_targets, np.nan), (spots, 1))


def _median_pcc(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Median PCC of the genes that have one, NaN if none has."""
    pcc = pearson(predicted, measured)
    known = ~np.isnan(pcc)
    return float(np.median(pcc[known])) if known.any() else np.nan
