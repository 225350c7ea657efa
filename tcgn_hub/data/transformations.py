"""How elements of SpatialData lie in coordinate systems: what NGFF states of it, as affine matrices of x and y."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tcgn_hub.errors import SectionError

_SQUARE = 0.02  # by how much two directions may be scaled differently


def placed(stated: Any, *, element: str) -> dict[str, np.ndarray]:
    """The matrix, float64, shape (3, 3), that takes (x, y, 1) of an element to each coordinate system, by its name.

    ``stated``: ``coordinateTransformations`` of the element, with ``input`` and ``output``, as spatialdata writes them;
    ``element``: what to call it in errors.

    Raises:
        SectionError: One is of no kind that is known, malformed, or takes x and y elsewhere.
    """
    found: dict[str, np.ndarray] = {}
    try:
        for one in stated:
            name = str(one["output"]["name"])
            start = _axes(one, "input", ())
            end, matrix = _affine(one, start)
            matrix = _rows(matrix, end, ("x", "y"))
            found[name] = _rows(matrix.T, start, ("x", "y")).T
    except (KeyError, TypeError, ValueError, IndexError) as err:
        raise SectionError(f"{element} states where it lies in a way that is not read ({err}).") from err
    bad = [name for name, matrix in found.items() if not np.isfinite(matrix).all()]
    if bad:
        raise SectionError(f"{element} is placed in {bad[0]} by what is no number.")
    return found


def scale_of(matrix: np.ndarray, *, what: str) -> float:
    """By how much a matrix (3, 3) scales lengths, the same in all directions.

    ``what``: what is transformed, for errors.

    Raises:
        SectionError: It shears, scales directions differently, or takes all to a line.
    """
    large, small = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if not small > 0 or large / small - 1 > _SQUARE:
        raise SectionError(
            f"{what} by a transformation that stretches or shears ({large:.4g} along one direction, {small:.4g} along"
            " another), which squares of tissue do not survive; resample the image first."
        )
    return float(np.sqrt(large * small))


def moved(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Points (n, 2) after a transformation (3, 3)."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def _axes(one: Mapping[str, Any], end: str, otherwise: Sequence[str]) -> list[str]:
    return [str(axis["name"]) for axis in one[end]["axes"]] if one.get(end) else list(otherwise)


def _affine(one: Mapping[str, Any], axes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The axes that come of a transformation, and its matrix, shape (axes that come + 1, axes + 1)."""
    kind, count = one["type"], len(axes)
    out = _axes(one, "output", axes)
    if kind == "sequence":
        matrix = np.eye(count + 1)
        for step in one["transformations"]:
            within = _axes(step, "input", axes)
            matrix = _rows(matrix, axes, within)
            axes, own = _affine(step, within)
            matrix = own @ matrix
        return list(axes), matrix
    matrix = np.zeros((len(out) + 1, count + 1))
    matrix[-1, -1] = 1
    if kind == "affine":
        matrix[:-1] = np.asarray(one["affine"], np.float64)
    elif kind == "mapAxis":
        for target, source in one["mapAxis"].items():
            matrix[out.index(target), list(axes).index(source)] = 1
    elif kind in ("identity", "scale", "translation"):
        matrix[: len(out), :count] = [[target == source for source in axes] for target in out]
        if kind == "scale":
            matrix[: len(out), :count] *= np.asarray(one["scale"], np.float64)
        elif kind == "translation":
            matrix[: len(out), -1] = matrix[: len(out), :count] @ np.asarray(one["translation"], np.float64)
    else:
        raise ValueError(f"a transformation of the type {kind!s:.40}")
    return out, matrix


def _rows(matrix: np.ndarray, axes: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """The rows of some axes, in this order, and the last."""
    return matrix[[*(list(axes).index(axis) for axis in wanted), len(axes)]]
