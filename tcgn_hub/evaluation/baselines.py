"""What simple predictions reach, to compare a model with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcgn_hub.correlation import column_means, pearson

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
        penalty = _best_penalty(train_features, train_targets, parts)
    return _ridge(train_features, train_targets, test_features, (penalty,))[0]


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


def _best_penalty(features: np.ndarray, targets: np.ndarray, parts: np.ndarray) -> float:
    """The penalty of `PENALTIES` that predicts parts left out best; the middle one if there is only one part."""
    scores = np.zeros(len(PENALTIES))
    numbers = np.unique(parts)
    if len(numbers) < 2:
        return PENALTIES[len(PENALTIES) // 2]
    for number in numbers:
        out = parts == number
        predicted = _ridge(features[~out], targets[~out], features[out], PENALTIES)
        pcc = np.array([pearson(values, targets[out]) for values in predicted])
        known = ~np.isnan(pcc).any(axis=0)
        if known.any():
            scores += np.median(pcc[:, known], axis=1)
    return PENALTIES[int(np.argmax(scores))]


def _ridge(
    train_features: np.ndarray, train_targets: np.ndarray, test_features: np.ndarray, penalties: Sequence[float]
) -> np.ndarray:
    """Predictions for each penalty, shape (penalties, other spots, genes); genes measured alike are fitted at once."""
    alike: dict[bytes, list[int]] = {}
    known = ~np.isnan(train_targets)
    for gene, spots in enumerate(known.T):
        alike.setdefault(spots.tobytes(), []).append(gene)
    predicted = np.full((len(penalties), len(test_features), train_targets.shape[1]), np.nan)
    for genes in alike.values():
        spots = known[:, genes[0]]
        if spots.any():
            predicted[:, :, genes] = _fit(
                train_features[spots], train_targets[spots][:, genes], test_features, penalties
            )
    return predicted


def _fit(x: np.ndarray, y: np.ndarray, test: np.ndarray, penalties: Sequence[float]) -> np.ndarray:
    """One decomposition for all penalties, of the spots' products or of the features', whichever are fewer."""
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64) + 1e-9
    x, test = (x - mean) / std, (test - mean) / std
    offset = y.mean(axis=0, dtype=np.float64)
    y = y - offset
    if len(x) < x.shape[1]:
        values, vectors = np.linalg.eigh(x @ x.T)
        right, left = vectors.T @ y, test @ x.T @ vectors
    else:
        values, vectors = np.linalg.eigh(x.T @ x)
        right, left = vectors.T @ (x.T @ y), test @ vectors
    values = np.maximum(values, 0)
    return np.stack([left / (values + penalty) @ right for penalty in penalties]) + offset
