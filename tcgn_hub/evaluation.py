"""How well predictions agree with measured expression, and what a simple baseline reaches."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["color_texture_features", "pearson", "reliable", "ridge_predict"]


def pearson(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Pearson correlation (PCC) of each gene over spots, 0 where either is constant.

    Args:
        predicted: Predictions, shape (spots, genes).
        measured: Measurements in the same units, shape (spots, genes).

    Returns:
        Correlations, float64, shape (genes,).
    """
    p = predicted - predicted.mean(axis=0, dtype=np.float64)
    m = measured - measured.mean(axis=0, dtype=np.float64)
    norm = np.sqrt((p**2).sum(axis=0) * (m**2).sum(axis=0))
    return np.divide((p * m).sum(axis=0), norm, out=np.zeros(p.shape[1]), where=norm > 0)


def reliable(pcc: np.ndarray, spots: int, fdr: float = 0.05) -> np.ndarray:
    """Genes whose held-out correlation is above 0 at a false discovery rate (Benjamini and Hochberg 1995).

    One-sided p-values by Fisher's z transform. Neighbouring spots are not independent, so the rate is optimistic.

    Args:
        pcc: Held-out correlation of each gene, shape (genes,).
        spots: Number of spots that they were computed on.
        fdr: False discovery rate.

    Returns:
        True for the genes that pass, shape (genes,).
    """
    if spots <= 3 or not len(pcc):
        return np.zeros(len(pcc), dtype=bool)
    z = np.arctanh(np.clip(pcc, -0.999999, 0.999999)) * math.sqrt(spots - 3)
    p = np.array([math.erfc(value / math.sqrt(2)) / 2 for value in z])
    passed = np.sort(p) <= fdr * np.arange(1, len(p) + 1) / len(p)
    return p <= np.sort(p)[passed].max() if passed.any() else passed


def color_texture_features(crops: np.ndarray) -> np.ndarray:
    """Hand-made features of colour and texture, the baseline's view of a patch.

    Args:
        crops: RGB crops, uint8, shape (n, 3, size, size).

    Returns:
        Features, float32, shape (n, 32): per channel mean, standard deviation, four quantiles, mean and standard
        deviation of optical density; mean absolute brightness steps at 1, 2, 4 and 8 px in both directions.
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

    Args:
        train_features: Shape (spots, features).
        train_targets: Shape (spots, genes).
        test_features: Shape (other spots, features).
        penalty: Weight of the squared coefficients.

    Returns:
        Predictions for the test spots, shape (other spots, genes).
    """
    mean, std = train_features.mean(axis=0), train_features.std(axis=0) + 1e-9
    x = ((train_features - mean) / std).astype(np.float64)
    offset = train_targets.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (train_targets - offset))
    return (test_features - mean) / std @ weights + offset
