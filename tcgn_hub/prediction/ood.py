"""Whether a patch resembles the tissue a model was trained on, by the distance of its features.

The features before the head are described by a Gaussian with a few free directions and the same variance in all others
(probabilistic PCA: Tipping and Bishop, J. R. Stat. Soc. B 61, 611 (1999)); the distance is that of Mahalanobis, as in
Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018. 1 is what 99 % of the
spots of a section stay below that the description was not made from.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TissueModel", "describe"]

_DIRECTIONS = 16
_LEAST_SPOTS = 40  # below, nothing can be said of a tail of 1 %
_QUANTILE = 0.99


@dataclass(frozen=True)
class TissueModel:
    """The features of training tissue.

    Attributes:
        mean: float32, shape (d,).
        directions: Orthonormal rows, float32, shape (k, d).
        variances: Along the directions, shape (k,).
        rest: Variance along any other direction.
        limit: Distance that is called 1.
    """

    mean: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    rest: float
    limit: float

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Distance of patches from the training tissue; above 1 a patch is unlike it.

        Args:
            features: Mean over positions of the final map, shape (n, d).

        Returns:
            float32, shape (n,).
        """
        centred = features.astype(np.float32) - self.mean
        along = centred @ self.directions.T
        others = np.clip((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0, None)
        return (np.sqrt((along**2 / self.variances).sum(axis=1) + others / self.rest) / self.limit).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """As plain values; arrays as base64 of little-endian float32, the directions of float16."""
        return {
            "mean": _encode(self.mean, "<f4"),
            "directions": _encode(self.directions, "<f2"),
            "variances": _encode(self.variances, "<f4"),
            "rest": self.rest,
            "limit": self.limit,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> TissueModel:
        """What `to_json` gave.

        Raises:
            ValueError: The document is malformed.
        """
        try:
            mean, variances = _decode(document["mean"], "<f4"), _decode(document["variances"], "<f4")
            directions = _decode(document["directions"], "<f2").reshape(len(variances), len(mean))
            rest, limit = float(document["rest"]), float(document["limit"])
        except (KeyError, TypeError) as err:
            raise ValueError(f"the features of training tissue lack {err}") from err
        if not (rest > 0 and limit > 0 and (variances > 0).all()):
            raise ValueError("the features of training tissue have a variance that is not above 0")
        return cls(mean, directions, variances, rest, limit)


def describe(features: Sequence[np.ndarray]) -> TissueModel | None:
    """Describe training tissue.

    Args:
        features: Of each section, shape (spots, d). The limit comes from sections left out one by one, or from fifths
            of the spots where there is one section.

    Returns:
        The description; None for fewer than 40 spots.
    """
    groups = [np.asarray(f, np.float64) for f in features if len(f)]
    if sum(map(len, groups)) < _LEAST_SPOTS:
        return None
    if len(groups) == 1:
        groups = [groups[0][i::5] for i in range(5)]
    left_out = []
    for i, own in enumerate(groups):
        fitted = _fit(np.concatenate([g for j, g in enumerate(groups) if j != i]), limit=1.0)
        left_out.append(fitted.distance(own))
    return _fit(np.concatenate(groups), limit=float(np.quantile(np.concatenate(left_out), _QUANTILE)))


def _fit(features: np.ndarray, *, limit: float) -> TissueModel:
    mean = features.mean(axis=0)
    _, singular, rows = np.linalg.svd(features - mean, full_matrices=False)
    variances = singular**2 / max(len(features) - 1, 1)
    k = min(_DIRECTIONS, len(features) - 2, features.shape[1] - 1)
    # features that are always 0 leave directions without any variance
    floor = 1e-6 * variances[0] + 1e-12
    rest = max(float(variances[k:].sum() / (features.shape[1] - k)), floor)
    # rounded as it will be stored, so that a limit holds for what is read again
    directions = rows[:k].astype(np.float16).astype(np.float32)
    return TissueModel(
        mean.astype(np.float32), directions, np.maximum(variances[:k], floor).astype(np.float32), rest, limit
    )


def _encode(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def _decode(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype).astype(np.float32)
