"""The layout of spots: their pitch, and how alike values are at each distance."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

_VALUES_AT_ONCE = 1_000_000  # of float64, 8 MB
_CLASSES = 21
_MOST_LEFT = 500
_LEFT_AT_ONCE = 250


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


def pair_sums(
    values: np.ndarray, xy: np.ndarray, pitch: float, basis: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How alike each column is in pairs of spots, in 21 classes of their distance.

    Class 0 is of each spot with itself, class k of ordered pairs of different spots that are k pitches apart, rounded,
    at least 1. Of more than 500 spots, 500 spread over the section are paired with all, and the sums scaled up.

    ``values``: shape (n, columns); ``xy``: spot centres, shape (n, 2); ``pitch``: their pitch in the same unit;
    ``basis``: orthonormal columns that have been taken out of ``values``, shape (n, k). Returns number of pairs of each
    class, shape (classes,); sums of the products of their values, shape (classes, columns); and of two classes
    trace(C M D M), where C and D are 1 for the pairs of the one and of the other class, else 0, and M takes out the
    basis, shape (classes, classes).
    """
    order = np.lexsort(xy.T[::-1])
    place = xy[order] / pitch
    ordered = np.concatenate([basis, values], axis=1)[order].astype(np.float32)
    taken = basis.shape[1]
    lefts = np.unique(np.linspace(0, len(place) - 1, _MOST_LEFT).astype(int))
    number, sums = np.zeros(_CLASSES), np.zeros((_CLASSES, values.shape[1]))
    inner, across = np.zeros((_CLASSES, taken, taken)), np.zeros((_CLASSES, _CLASSES))
    for start in range(0, len(lefts), _LEFT_AT_ONCE):
        left = lefts[start : start + _LEFT_AT_ONCE]
        first, last = np.searchsorted(place[:, 0], place[left[[0, -1]], 0] + [-_CLASSES, _CLASSES])
        distance = np.hypot(*(place[left, None] - place[None, first:last]).transpose(2, 0, 1))
        of_pair = np.clip(np.floor(distance + 0.5), 1, _CLASSES).astype(np.uint8)
        of_pair[np.arange(len(left)), left - first] = 0
        counted = np.bincount(of_pair.ravel(), minlength=_CLASSES)[:_CLASSES]
        number += counted
        of_basis = np.zeros((_CLASSES, len(left), taken))
        for k in np.flatnonzero(counted):
            neighbours = (of_pair == k).astype(np.float32) @ ordered[first:last]
            sums[k] += (ordered[left, taken:] * neighbours[:, taken:]).sum(axis=0)
            of_basis[k] = neighbours[:, :taken]
            inner[k] += ordered[left, :taken].T @ of_basis[k]
        across += np.einsum("ksb,jsb->kj", of_basis, of_basis)
    scale = len(place) / len(lefts)
    number, sums, inner, across = number * scale, sums * scale, inner * scale, across * scale
    return number, sums, np.diag(number) - 2 * across + np.einsum("kab,jba->kj", inner, inner)
