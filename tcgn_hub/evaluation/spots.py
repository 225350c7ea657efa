"""The layout of spots: their pitch, and how alike values are at each distance."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

_VALUES_AT_ONCE = 1_000_000  # of float64, 8 MB
_LEFT_AT_ONCE = 256


def parts(number: int, values: int) -> Iterator[slice]:
    """Slices of so many rows or columns, of so many values each, of which one is in memory at a time."""
    at_once = max(1, _VALUES_AT_ONCE // max(1, values))
    return (slice(start, start + at_once) for start in range(0, number, at_once))


def spot_pitch(xy: np.ndarray) -> float | None:
    """Median distance to the nearest other place of a spot, of some hundred spots; None if there is none.

    ``xy``: spot centres in any unit, shape (n, 2). Returns a distance in that unit; None too where any is NaN.
    """
    if not len(xy):
        return None
    some = xy[np.unique(np.linspace(0, len(xy) - 1, 500).astype(int))]
    nearest = np.empty(len(some))
    for part in parts(len(some), len(xy)):
        distance = np.hypot(*(some[part, None] - xy).transpose(2, 0, 1))
        nearest[part] = np.where(distance > 0, distance, np.inf).min(axis=1)
    pitch = float(np.median(nearest))
    return pitch if math.isfinite(pitch) and not np.isnan(xy).any() else None


def correlograms(values: np.ndarray, xy: np.ndarray, pitch: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Autocorrelation of each column in classes of distance, class k of pairs that are k pitches apart, rounded.

    ``values``: standardised columns, shape (n, columns); ``xy``: spot centres, shape (n, 2); ``pitch``: their pitch in
    the same unit. Class 0 is of other spots nearer than half a pitch. Returns number of pairs of each class, shape
    (classes,), and mean product of the two spots of a pair, shape (classes, columns); 0 where there is no pair.
    """
    order = np.argsort(xy[:, 0], kind="stable")
    place, ordered = xy[order] / pitch, values[order].astype(np.float32)
    reach = np.searchsorted(place[:, 0], place[:, 0] + classes - 0.5)
    number, total = np.zeros(classes, np.int64), np.zeros((classes, values.shape[1]))
    for start in range(0, len(place), _LEFT_AT_ONCE):
        left = slice(start, min(start + _LEFT_AT_ONCE, len(place)))
        # pairs are counted once, by the spot that comes first
        right = slice(start, reach[left.stop - 1])
        distance = np.hypot(*(place[left, None] - place[None, right]).transpose(2, 0, 1))
        of_pair = np.where(np.triu(np.ones(distance.shape, bool), 1), np.floor(distance + 0.5), classes)
        for k in range(classes):
            inside = of_pair == k
            if pairs := int(inside.sum()):
                number[k] += pairs
                total[k] += (ordered[left] * (inside.astype(np.float32) @ ordered[right])).sum(axis=0)
    return number, total / np.maximum(number, 1)[:, None]
