"""Whether a patch resembles the tissue a model was trained on: by its features, and by its picture.

The features before the head see what the genes of the training tissue depend on, and little else; so the colours,
contrasts and sharpness of the picture are described beside them, see `tcgn_hub.prediction.picture`. Each is described
by a Gaussian with a few free directions and the same variance in all others (probabilistic PCA: Tipping and Bishop, J.
R. Stat. Soc. B 61, 611 (1999)); its distance is that of Mahalanobis, as in Lee et al., "A Simple Unified Framework for
Detecting Out-of-Distribution Samples", NeurIPS 2018. The larger one counts, and 1 is what 99 % of the spots of a usual
section stay below that the description was not made from.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tcgn_hub.weights.arrays import from_text, to_text

__all__ = ["Gaussian", "TissueModel", "describe"]

_DIRECTIONS = {"features": 12, "picture": 31}
_TOLERANCE = {"features": 0.0, "picture": 0.1}  # by what scans of the same tissue may differ, mostly in logarithms
_SPOTS_PER_DIRECTION = 10
_LEAST_SPOTS = 40  # below, nothing can be said of a tail of 1 %
_QUANTILE = 0.99
_TAIL_SPOTS = 100  # of which this is a quantile
_LARGEST_SHARE = 0.8  # of all spots; what remains could not describe a section that is larger
_PIECES = 5
_MOST_GROUPS = 10  # that are left out in turn


@dataclass(frozen=True)
class Gaussian:
    """Numbers that describe training tissue, and their usual distance from its mean.

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

    def distance(self, numbers: np.ndarray) -> np.ndarray:
        """Distance of patches, shape (n, d), in units of the limit; float32, shape (n,)."""
        centred = numbers.astype(np.float32) - self.mean
        along = centred @ self.directions.T
        others = np.clip((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0, None)
        return (np.sqrt((along**2 / self.variances).sum(axis=1) + others / self.rest) / self.limit).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """As plain values; arrays as base64 of little-endian float32, more than a thousand directions of float16."""
        return {
            "mean": to_text(self.mean, "<f4"),
            "directions": to_text(self.directions, "<f2" if _are_many(self.directions) else "<f4"),
            "variances": to_text(self.variances, "<f4"),
            "rest": self.rest,
            "limit": self.limit,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Gaussian:
        """What `to_json` gave.

        Raises:
            ValueError: The document is malformed.
        """
        try:
            mean, variances = from_text(document["mean"], "<f4"), from_text(document["variances"], "<f4")
            shape = len(variances), len(mean)
            stored = base64.b64decode(document["directions"], validate=True)
            directions = np.frombuffer(stored, "<f2" if len(stored) == 2 * shape[0] * shape[1] else "<f4")
            rest, limit = float(document["rest"]), float(document["limit"])
        except (KeyError, TypeError) as err:
            raise ValueError(f"the description of training tissue lacks {err}") from err
        if not (rest > 0 and limit > 0 and (variances > 0).all()):
            raise ValueError("the description of training tissue has a variance that is not above 0")
        return cls(mean, directions.astype(np.float32).reshape(shape), variances, rest, limit)


@dataclass(frozen=True)
class TissueModel:
    """What training tissue is like.

    Attributes:
        features: Of the features of the network.
        picture: Of colour, contrast and sharpness; None in weights of versions that did not describe them.
    """

    features: Gaussian
    picture: Gaussian | None = None

    def distance(self, features: np.ndarray, pictures: np.ndarray | None = None) -> np.ndarray:
        """Distance of patches from the training tissue; above 1 a patch is unlike it.

        Args:
            features: Mean over positions of the final map, shape (n, d).
            pictures: `tcgn_hub.prediction.picture.picture_features` of the same patches, shape (n, 32); without them
                only the features count.

        Returns:
            The larger of the distances, float32, shape (n,).
        """
        distance = self.features.distance(features)
        if self.picture is None or pictures is None:
            return distance
        return np.maximum(distance, self.picture.distance(pictures))

    def to_json(self) -> dict[str, Any]:
        """As plain values, see `Gaussian.to_json`; earlier versions read those of the features."""
        return {**self.features.to_json(), **({} if self.picture is None else {"picture": self.picture.to_json()})}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> TissueModel:
        """What `to_json` gave, that of earlier versions included.

        Raises:
            ValueError: The document is malformed.
        """
        features, picture = Gaussian.from_json(document), document.get("picture")
        return cls(features, None if picture is None else Gaussian.from_json(picture))


def describe(
    features: Sequence[np.ndarray],
    pictures: Sequence[np.ndarray] | None = None,
    *,
    places: Sequence[np.ndarray] | None = None,
) -> TissueModel | None:
    """Describe training tissue.

    The limit is what 99 % of the spots of a section stay below that is left out, the median of all sections by their
    sizes: one odd section does not lift it. A section of more than four fifths of all spots is left out in five pieces
    instead, for the others would say too little of it; small sections are left out together.

    Args:
        features: Of each section, shape (spots, d).
        pictures: `tcgn_hub.prediction.picture.picture_features` of each section, shape (spots, 32); if None, only the
            features are described.
        places: Positions of the spots of each section, shape (spots, 2), by which it is cut into pieces across its
            longer side; spots are taken to be in the order of their places if None.

    Returns:
        The description; None for fewer than 40 spots.
    """
    sizes = [len(f) for f in features]
    if sum(sizes) < _LEAST_SPOTS:
        return None
    left_out = _left_out(sizes, places)
    numbers = {"features": np.concatenate(features)}
    if pictures is not None:
        numbers["picture"] = np.concatenate(pictures)
    distances = {name: _distances_left_out(name, values, left_out) for name, values in numbers.items()}
    limits = {name: _limit(own, left_out) for name, own in distances.items()}
    # the larger of two is above 1 more often than each
    common = _limit(np.max([own / limits[name] for name, own in distances.items()], axis=0), left_out)
    return TissueModel(
        **{name: replace(_fit(name, values), limit=common * limits[name]) for name, values in numbers.items()}
    )


def _left_out(sizes: Sequence[int], places: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """Which spots are left out together, as indices into all."""
    groups, start = [], 0
    for i, size in enumerate(sizes):
        order = np.arange(size)
        if places is not None and size and np.isfinite(places[i]).all():
            xy = np.asarray(places[i], float)
            order = np.argsort(xy[:, np.argmax(np.ptp(xy, axis=0))], kind="stable")
        pieces = _PIECES if size > _LARGEST_SHARE * sum(sizes) else 1
        groups += [start + piece for piece in np.array_split(order, pieces)]
        start += size
    return _merged(groups, sum(sizes) / _MOST_GROUPS)


def _merged(groups: Sequence[np.ndarray], least: float) -> list[np.ndarray]:
    """Neighbours in the list together, so that each has at least so many spots."""
    merged = [groups[0]]
    for group in groups[1:]:
        if len(merged[-1]) < least:
            merged[-1] = np.concatenate([merged[-1], group])
        else:
            merged.append(group)
    if len(merged) > 1 and len(merged[-1]) < least:
        merged[-2:] = [np.concatenate(merged[-2:])]
    return merged


def _distances_left_out(name: str, numbers: np.ndarray, left_out: Sequence[np.ndarray]) -> np.ndarray:
    """Of each spot, from what describes the spots that are not left out with it."""
    distances = np.empty(len(numbers))
    for own in left_out:
        distances[own] = _fit(name, np.delete(numbers, own, axis=0)).distance(numbers[own])
    return distances


def _limit(distances: np.ndarray, left_out: Sequence[np.ndarray]) -> float:
    """The upper median of the groups' quantiles, each group counting by its size."""
    groups = _merged(left_out, _TAIL_SPOTS)
    quantiles = np.array([np.quantile(distances[own], _QUANTILE) for own in groups])
    order = np.argsort(quantiles)
    below = np.cumsum([len(groups[i]) for i in order])
    return max(float(quantiles[order[np.searchsorted(below, below[-1] / 2, side="right")]]), 1e-6)


def _fit(name: str, numbers: np.ndarray) -> Gaussian:
    """A Gaussian with a limit of 1."""
    numbers = np.asarray(numbers, np.float64)
    n, d = numbers.shape
    mean = numbers.mean(axis=0)
    _, singular, rows = np.linalg.svd(numbers - mean, full_matrices=False)
    variances = singular**2 / max(n - 1, 1)
    k = max(0, min(_DIRECTIONS[name], math.ceil(n / _SPOTS_PER_DIRECTION), n - 2, d - 1))
    # features that are always 0 leave directions without any variance
    floor = 1e-6 * variances[0] + 1e-12
    chance = _TOLERANCE[name] ** 2
    rest = max(float(variances[k:].sum() / (d - k)), floor) + chance
    directions = rows[:k].astype(np.float32)
    if _are_many(directions):
        # rounded as it will be stored, so that a limit holds for what is read again
        directions = directions.astype(np.float16).astype(np.float32)
    variances = (np.maximum(variances[:k], floor) + chance).astype(np.float32)
    return Gaussian(mean.astype(np.float32), directions, variances, rest, limit=1.0)


def _are_many(directions: np.ndarray) -> bool:
    return directions.size > 1024
