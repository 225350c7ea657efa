"""What simple predictions reach, to compare a model with."""

from __future__ import annotations

import numpy as np

from tcgn_hub.correlation import column_means


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
    train_features: np.ndarray, train_targets: np.ndarray, test_features: np.ndarray, *, penalty: float = 30.0
) -> np.ndarray:
    """Ridge regression on standardised features, fitted on the training spots only.

    ``train_features``: shape (spots, features); ``train_targets``: shape (spots, genes); NaN where a gene was not
    measured, which is fitted on the other spots; ``test_features``: shape (other spots, features); ``penalty``: weight
    of the squared coefficients. Returns predictions for the test spots, shape (other spots, genes); NaN for genes
    without a training spot.
    """
    alike: dict[bytes, list[int]] = {}
    known = ~np.isnan(train_targets)
    for gene, spots in enumerate(known.T):
        alike.setdefault(spots.tobytes(), []).append(gene)
    predicted = np.full((len(test_features), train_targets.shape[1]), np.nan)
    for genes in alike.values():
        spots = known[:, genes[0]]
        if spots.any():
            predicted[:, genes] = _ridge(train_features[spots], train_targets[spots][:, genes], test_features, penalty)
    return predicted


def mean_predict(train_targets: np.ndarray, spots: int) -> np.ndarray:
    """The mean of each gene over the training spots, for every test spot.

    ``train_targets``: shape (training spots, genes); NaN where a gene was not measured; ``spots``: number of test
    spots. Returns predictions, float64, shape (spots, genes); NaN for genes without a training spot.
    """
    return np.tile(column_means(train_targets, np.nan), (spots, 1))


def _ridge(
    train_features: np.ndarray, train_targets: np.ndarray, test_features: np.ndarray, penalty: float
) -> np.ndarray:
    mean, std = train_features.mean(axis=0), train_features.std(axis=0) + 1e-9
    x = ((train_features - mean) / std).astype(np.float64)
    offset = train_targets.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (train_targets - offset))
    return (test_features - mean) / std @ weights + offset
